"""`curate`: from a finished run to its corpus without its worst rows, selected, weighted or with scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datainf_ray.common.arrow import of_content
from datainf_ray.common.errors import RequestError, RunFailedError, one_line
from datainf_ray.common.redaction import redacted
from datainf_ray.common.storage import Options, failing
from datainf_ray.config import options_among
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.files import FOLDER, open_file, open_seekable
from datainf_ray.corpus.records import TEXT_FORMATS
from datainf_ray.curate.extra import Extra
from datainf_ray.curate.formats import Format, finish, format_of
from datainf_ray.curate.lines import Stays, copy_text
from datainf_ray.curate.pictures import check_pictures, copy_folder, copy_named
from datainf_ray.curate.result import Curated, Suggested
from datainf_ray.curate.rules import AUTO, GOES, SIBLING, STAYS, Decided, Rule, decide, rule_of, side_of
from datainf_ray.curate.siblings import add_siblings, require_comparable
from datainf_ray.curate.source import Source, require_same, source_of, values_of
from datainf_ray.curate.tables import copy_table
from datainf_ray.curate.target import Target
from datainf_ray.curate.told import annotated, blamed, rejected, top_rejected, weighted, words
from datainf_ray.runs.column import Column
from datainf_ray.runs.cut import Cut, cut_of, cut_scores
from datainf_ray.runs.places import Place, place_of
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.scores import Because, Scores

SHOWN = 10  #: rows that a dry run shows


@dataclass(frozen=True)
class Judged:
    """A rule, and what it makes of the rows of finished runs."""

    sources: list[Source]
    rule: Rule
    scores: Scores
    decided: Decided

    @property
    def corpus(self) -> Corpus:
        return self.sources[0].corpus("train")


def judge(runs: Sequence[str | Run], rule: Rule, overrides: dict[str, Any]) -> Judged:
    """What the rule makes of the runs' rows. Raises `RequestError` as `curate` does."""
    sources = [source_of(_opened(run, overrides), **overrides) for run in runs]
    corpus = sources[0].corpus("train")
    if rule.siblings:
        require_comparable(corpus)
    for other in sources[1:]:
        require_same(sources[0], other, "train")
    scores = Scores([source.run for source in sources], rule.because)
    if rule.auto:
        rule = replace(rule, count=_standing_out(scores, rule.because), auto=False)
    groups = _groups(corpus, rule.per) if rule.per not in (None, "query") else None
    decided = decide(rule, scores, groups)
    if rule.siblings:
        add_siblings(decided, corpus)
    return Judged(sources, rule, scores, decided)


def _standing_out(scores: Scores, because: Because) -> int:
    """How many rows `--drop auto` takes."""
    rows = cut_scores(scores).of(because).stand_out
    if not rows:
        problem = f"no {because} row stands out of what chance would give"
        raise RequestError("--drop", AUTO, problem, "name a number of rows, or a share as in 1%")
    return rows


def cut(run: str | Run, *others: str | Run, seed: int = 0, overrides: dict[str, Any] | None = None) -> Cut:
    """Where the rows of finished runs may be cut, and which of them stand out: see `runs.cut`.

    Reads no corpus where run.json says that the runs have the same. Raises `RequestError` as `curate` does.
    """
    with failing():
        runs = [_opened(one, overrides or {}) for one in (run, *others)]
        if others:
            first, *more = (source_of(one, **(overrides or {})) for one in runs)
            for other in more:
                require_same(first, other, "train")
        return cut_of(*runs, seed=seed)


def suggested(*runs: str | Run, because: str | None = None, overrides: dict[str, Any] | None = None) -> Suggested:
    """Which rows stand out on the side that is to blame, and the command that drops them."""
    side = side_of(because)
    return Suggested(cut(*runs, overrides=overrides), side)


def curate(
    run: str | Run,
    *others: str | Run,
    to: str | None = None,
    rejected: str | None = None,
    dry_run: bool = False,
    because: str | None = None,
    output_format: str | None = None,
    storage_options: Options | None = None,
    overrides: dict[str, Any] | None = None,
    **asked: Any,
) -> Curated:
    """Write a finished run's corpus again, with fewer rows or more columns; the corpus itself is not touched.

        >>> run.curate(to="clean.jsonl.gz", drop="1%", because="helpful", rejected="gone.jsonl")

    One of these says which rows stay: `drop` (a number of rows, or a share as "1%": those that are most to blame go;
    "auto": as many as stand out of what chance would give, see `runs.cut`);
    `drop_above` (a blame in root mean squares); `select` (as many of the least to blame stay; `per` a column has equal
    numbers of each of its values, `per="query"` lets queries take turns); `between` (("q30", "q70"), the middle of the
    order); `sample` (as many, drawn by their weights); `ids` (these rows go). With `weights` all stay and get a column
    `weight`, 2 / (1 + exp(blame / `temperature`)); with `annotate` all stay and get their scores.

    `because` says who is to blame: "helpful", the queries are mistakes and rows that lower their loss taught them;
    "harmful", the queries are good answers and rows that raise their loss spoil them. `across` ("mean", "max" or
    "votes") makes one number of a row's influences on all queries, each query's divided by their root mean square
    first; further runs of the same corpus bring further queries. `near_duplicates` lets rows go whose text is nearly
    that of one that goes. Rows without a score stay where rows are dropped, and do not where they are selected, unless
    `without_score` is "keep" or "drop". `seed` is that of `sample`.

    `to` is a new file where the corpus is one, of its format, or a new folder; it has the corpus' columns, order,
    compression, and of text files the bytes of all lines that stay. Pictures that rows name are copied into a folder;
    a new file must be beside them. `rejected` is such a place for the rows that go,
    with the columns reason, row, id, query, rank, influence and share. With `dry_run` nothing is written.
    `output_format` is "less", "date-lm" or "llamafactory". `overrides` replace keys of the run's configuration, such as
    train.path where the corpus was moved.

    Raises `RequestError` where the request is wrong, the run is not done or its corpus is not what it was; then nothing
    is written.
    """
    rule = rule_of(because, **asked)
    kind = format_of(output_format, rule)
    if to is None and not dry_run:
        raise RequestError("--to", None, "says nothing of where the rows go", "name a new place, or use --dry-run")
    changed = dict(overrides or {}) | ({"storage_options": storage_options} if storage_options else {})
    with failing(), ExitStack() as stack:
        sources = [source_of(_opened(one, changed), **changed) for one in (run, *others)]
        targets = [] if dry_run else _targets(sources[0], to, rejected, rule, kind)
        for target in targets:
            stack.callback(target.close)
            target.begin()
        judged = judge([source.run for source in sources], rule, changed)
        first = top_rejected(rule, judged.scores, judged.decided, SHOWN) if dry_run and not rule.whole else []
        if targets:
            _write(judged, targets, kind)
        return _told(judged, first, *(target.url for target in targets))


def _opened(run: str | Run, overrides: dict[str, Any]) -> Run:
    return run if isinstance(run, Run) else open_run(run, options_among(overrides))


def _groups(corpus: Corpus, column: str | None) -> Column:
    """The number of each row's value in a column; rows without one have a value of their own."""
    assert column is not None
    found, numbers = Column(corpus.rows, np.int64), dict[str | None, int]()
    held: list[int] = []
    for row, value in values_of(corpus, column, "--per"):
        held.append(numbers.setdefault(value, len(numbers)))
        if len(held) == 1 << 16 or row.row == corpus.rows - 1:
            found.put(row.row + 1 - len(held), np.array(held))
            held = []
    return found


def _targets(source: Source, to: str | None, gone: str | None, rule: Rule, kind: Format | None) -> list[Target]:
    """The places that are to be written, tried before anything is read. The first is for the rows that stay."""
    corpus, options = source.corpus("train"), source.config.storage_options
    assert to is not None
    if gone is not None and rule.whole:
        raise RequestError("--rejected", gone, "no row goes", f"leave it out with --{rule.name}")
    targets = [Target(to, "--to", options, corpus, plain=kind is not None)]
    if gone is not None:
        targets.append(Target(gone, "--rejected", options, corpus))
    config = source.config
    read = {"train.path": config.train.paths, "queries.path": config.queries.paths}
    places: list[Place] = [place_of(source.run.url, "run", options)]
    for target in targets:
        check_pictures(target, corpus, kind)
        target.check(read, corpus, places)
        places.append(target.place())
    return targets


def _write(judged: Judged, targets: list[Target], kind: Format | None) -> None:
    rule, scores, decided, corpus = judged.rule, judged.scores, judged.decided, judged.corpus
    extra = None
    if rule.whole and kind != "date-lm":
        extra = annotated(scores, decided) if rule.name == "annotate" else weighted(rule, decided)
        extra = extra.called(corpus.files)
    if kind != "date-lm":
        _write_rows(corpus, targets[0], decided.fate == STAYS, extra)
    if kind is not None:
        finish(kind, targets[0], corpus, decided)
    for target in targets[1:]:
        _write_rows(corpus, target, decided.fate != STAYS, _rejected(judged))
    for target in reversed(targets):  # the rows that stay come last: where they are, all is
        target.publish()


def _rejected(judged: Judged) -> Extra:
    extra = rejected(judged.rule, judged.scores, judged.decided)
    return extra.called(judged.corpus.files, judged.decided.fate != STAYS)


def _write_rows(corpus: Corpus, target: Target, stays: np.ndarray, extra: Extra | None) -> None:
    """Copy the rows of a corpus that stay, file by file."""
    first = 0
    for number, file in enumerate(corpus.files):
        stay = _of_file(stays[first : first + file.rows])
        first += file.rows
        if file.format == FOLDER:
            copy_folder(target, file, stay, extra)
            continue
        with target.write(file) as out:
            try:
                if file.format in TEXT_FORMATS:
                    with open_file(file) as stream:
                        copy_text(stream, file, out, stay, extra)
                else:
                    with open_seekable(file) as source:
                        copy_table(source, file, out, stay, extra)
            except Exception as error:
                if not of_content(error):
                    raise
                raise RunFailedError(f"{file.path}: cannot be decoded: {one_line(error)}") from None
        if corpus.pictures and target.folder:
            copy_named(target, corpus, number, stay)


def _of_file(stays: np.ndarray) -> Stays:
    return lambda start, stop: stays[start:stop]


def _told(judged: Judged, first: list[dict[str, Any]], to: str | None = None, gone: str | None = None) -> Curated:
    rule, scores, decided = judged.rule, judged.scores, judged.decided
    kept = other_side = 0
    for start, score in decided.score.blocks():
        fates = decided.fate[start : start + len(score)]
        other_side += int(((score <= 0) & (fates == GOES)).sum())
        kept += int((np.isnan(score) & (fates == STAYS)).sum())
    total, share = blamed(decided)
    notes = []
    if other_side and rule.name == "drop":
        notes.append(f"{other_side:,} of the rows that go are not {rule.because} at all: ask for fewer")
    previews: dict[int, str] = {}
    for source in judged.sources if first else ():
        tops = source.run.tops()
        previews.update(zip(tops["row"].to_pylist(), tops["preview"].to_pylist(), strict=True))
    return Curated(
        runs=[redacted(source.run.url) for source in judged.sources],
        to=to if to is None else redacted(to),
        rejected=gone if gone is None else redacted(gone),
        rule=words(rule, scores),
        because=rule.because,
        across=rule.across,
        queries=len(scores.queries),
        rows=scores.rows,
        kept=int((decided.fate == STAYS).sum()),
        dropped=int((decided.fate == GOES).sum()),
        near_duplicates=int((decided.fate == SIBLING).sum()),
        without_score=dict(scores.missing),
        without_score_kept=kept,
        share=share / total if total else 0.0,
        first=[{**row, "preview": previews.get(row["row"])} for row in first],
        notes=notes,
    )
