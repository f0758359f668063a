"""`report.html`: what a run found, in one self-contained page that a person can mail or open from a bucket."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from markupsafe import Markup

from datainf_ray.common.words import byte_size, visible
from datainf_ray.corpus.common_words import Phrases
from datainf_ray.corpus.passages import ROW_BYTES
from datainf_ray.corpus.preview import LONGER, fold_ends
from datainf_ray.runs.record import tell_half_precision, tell_left_out
from datainf_ray.runs.report import doubts, timeline
from datainf_ray.runs.report.beside import Beside
from datainf_ray.runs.report.by_column import by_column
from datainf_ray.runs.report.by_token import sections
from datainf_ray.runs.report.drawing import inline_svg
from datainf_ray.runs.report.figures import cumulative, histogram, layer_of, layers
from datainf_ray.runs.report.listed import Listed, also, called, facts_of, marked, said, told_of
from datainf_ray.runs.report.pictured import Pictured, pictured
from datainf_ray.runs.report.render import count, render
from datainf_ray.runs.report.verdict import asked, verdict
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, matrix, norm_of
from datainf_ray.runs.texts import QUERY, ROW, said_by
from datainf_ray.runs.top import DIRECTIONS

_QUERIES = 20  # shown in full
_OPEN = 3  # of them unfolded
_ROWS = 10  # per page of a table
_MOST = 100  # per table
_LATER = 160  # characters of a preview behind the first page
_BYTES = 10 * 10**6  # of the page
_TEXT_BYTES = 3 * 10**6  # of full texts
_PICTURE_BYTES = 4 * 10**6  # of pictures
_BLOCKS = 20
_SAMPLE = 2**24  # influences read for the distributions, whatever the size of the corpus
_PLACES = 4  # parts from which they come at least; a row group has 2**22 of them

_STATUS = {
    OK: "has a loss and an influence on every query",
    "no_target_tokens": "nothing in it for the model to predict: empty, or its completion was cut off by max_length",
    "nonfinite": "its loss or gradient was infinite or not a number",
    "unreadable": "the row could not be read or turned into tokens",
    "failed": "the model could not compute it, and said why: see detail",
    "crashed": "the worker that computed it died, again and again",
}


def write_report(run: Run) -> str:
    """Write report.html into the directory of a finished run and return its URL; the same run gives the same bytes."""
    run.directory.write("report.html", _page(run).encode())
    return run.directory.path("report.html")


def _page(run: Run) -> str:
    for rooms in ((_TEXT_BYTES, _PICTURE_BYTES), (0, _PICTURE_BYTES)):  # HTML writes some characters as many
        made = _filled(run, *rooms)
        if len(made.encode()) <= _BYTES:
            return made
    bare = _filled(run, 0, 0)
    return _filled(run, 0, max(0, _BYTES - len(bare.encode())))


def _filled(run: Run, room: int, picture_room: int) -> str:
    """The page, with about `room` bytes of full texts, and at most so many of pictures."""
    queries, tops, summary = run.queries().to_pylist(), run.tops(), run.summary()
    usable = [q for q in queries if q["status"] == OK]
    shown = usable[:_QUERIES]
    sample = _sample(run, [q["query"] for q in shown])
    share = sample.share
    mine = tops.filter(pc.and_(pc.is_in(tops["query"], pa.array([q["query"] for q in shown], pa.int32())),
                               pc.less_equal(tops["rank"], _MOST)))  # fmt: skip
    numbers, texts = [q["query"] for q in shown], run.texts()
    seen = pictured(run.pictures(), numbers, mine, _ROWS, picture_room)
    command = f"datainf curate {shlex.quote(visible(run.url))}"
    to = f" --to {shlex.quote(_cleaned(run.config, pictures=bool(seen)))}"
    found = verdict(run, usable, numbers, sample.typical_loss, command, to)
    on_page = {*mine["row"].to_pylist()}
    rows = on_page | {row["row"] for row in found.first}
    listed = Listed(facts_of(run, rows), said_by(texts, ROW), said_by(texts, QUERY))
    beside = Beside.of(run, listed, texts, on_page)
    entries = _Entries(run, listed, tops, sample, room, len(mine), beside, seen)
    blocks = run.blocks().sort_by([("mean_sqnorm", "descending")])
    return render(
        "report.html.j2",
        title=run.url.rstrip("/").rpartition("/")[2],
        config=run.config,
        config_yaml=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        record=run.record,
        summary=summary,
        remarks=_remarks(summary),
        timeline=None if (times := timeline.timeline(run.events())) is None else timeline.describe(times),
        paths=_paths(run.config),
        queries=[entries.query(q, at) for at, q in enumerate(shown)],
        by_token=sections(run, numbers),
        doubts=doubts.of_run(run.record, listed, sample.losses),
        script=_script(),
        pictured=bool(seen),
        pictures=seen.over_all,
        verdict=found,
        labels={row["row"]: listed.labels.of(row["row"]) for row in found.first},
        beside=entries.beside,
        by=by_column(run, numbers),
        command=command,
        to=to,
        usable=len(usable),
        unusable=[q for q in queries if q["status"] != OK],
        opened=_OPEN,
        share=share,
        has_scores=run.has_scores,
        are=run.config["queries"].get("are"),
        overall=_overall(tops) if len(usable) > 1 else None,
        rows_per_table=_ROWS,
        most=_MOST,
        top_k=run.top_k,
        status_meaning=_STATUS,
        blocks=blocks.slice(0, _BLOCKS).to_pylist(),
        blocks_total=blocks.num_rows,
        layers=_layers(blocks),
        sqnorm_total=pc.sum(blocks["mean_sqnorm"]).as_py() or 0.0,
    )


def _remarks(summary: dict[str, Any]) -> list[str]:
    """How the work was done, a paragraph each; nothing of what an older run does not say."""
    remarks = []
    if answers := summary["answers"]:
        remarks.append(f"Answered from the gradient index of {answers['run']}: the corpus was not gone through again.")
    if combined := summary["combined"]:
        terms = " + ".join(f"{one['weight']:g} × {one['run']}" for one in combined)
        what = "Every influence is the weighted sum of those in"
        remarks.append(f"{what} {_many(len(combined), 'run')}: {terms}. Losses are weighted means.")
    if summary["sizes"]:
        remarks.append(_of_sizes(**summary["sizes"]))
    if summary["dtype"] in ("bfloat16", "float16"):
        told = tell_half_precision(summary["dtype"])
        remarks.append(f"{told[0].upper()}{told[1:]}.")
    if cut := summary["rows_cut"]:
        remarks.append(f"{_many(cut, 'row')} had more tokens than max_length; the model saw no more of them than that.")
    if lost := sum(sweep.get("recomputed") or 0 for sweep in summary["sweeps"]):
        remarks.append(f"The kept gradients of {_many(lost, 'chunk')} were lost and had to be computed again.")
    if summary["curvature"]:
        remarks += _of_curvature(**summary["curvature"])
    if unsolved := summary["unsolved"]:
        remarks.append(f"{unsolved[0].upper()}{unsolved[1:]}.")
    if summary["left_out"]:
        remarks.append(tell_left_out(summary["left_out"], summary["blocks"]) + ".")
    if summary["index"]:
        remarks.append(_of_index(**summary["index"]))
    return remarks


def _of_sizes(
    *, chunk_rows: int, batch_tokens: int, groups: Sequence[Any], gradients: str, why: str | None = None, **_: Any
) -> str:
    text = f"Chunks of {_many(chunk_rows, 'row')} in batches of at most {count(batch_tokens)} tokens, padding included"
    if len(groups) > 1:
        text += f"; the queries in {len(groups)} groups"
    kept = "gradients were kept between the sweeps" if gradients == "keep" else "every sweep computed its gradients"
    reason = (why or kept).rstrip(".")
    return f"{text}. {reason[0].upper()}{reason[1:]}."


def _of_curvature(
    *,
    rows: int,
    sampled: bool,
    bound: float | None = None,
    exact_blocks: int = 0,
    sampling_error: float | None = None,
    error: float | None = None,  # what earlier versions called it
    way: str | None = None,
    residual: float | None = None,
    iterations: int | None = None,
    **_: Any,
) -> list[str]:
    remarks = []
    if sampled:
        text = f"The curvature is that of a random sample of {_many(rows, 'row')}"
        error = error if sampling_error is None else sampling_error
        if error is not None:
            text += f"; its two halves suggest a relative error of {100 * error:.2g} % in the inverse-Hessian products"
        remarks.append(text + ".")
    if bound:
        remarks.append(
            "The curvature was summed while the damping was not yet known, at values around it, and interpolated: "
            f"that adds a relative error of at most {bound:.1e}."
        )
    if residual is not None:
        left = f"the relative residual of a block's inverse-Hessian products is at most {residual:.1e}"
        how = f"{way}, {_many(iterations, 'iteration')}" if iterations else way
        remarks.append(f"The inverse was computed block by block ({how}): {left}.")
    if exact_blocks:
        what = "was not exact enough, so there was one more sweep, at the damping itself"
        remarks.append(f"For {_many(exact_blocks, 'block')} interpolating {what}.")
    return remarks


def _of_index(
    *,
    url: str,
    dtype: str,
    bytes: int | None = None,
    projection: int | None = None,
    correlation: float | None = None,
    correlation_rows: int | None = None,
    **_: Any,
) -> str:
    text = f"A gradient index for later queries is at {url}: {byte_size(bytes)} of {dtype}"
    if projection:
        text += f", projected to {projection} per side of a block"
    if correlation is not None:
        text += f". Influences from it correlate {correlation:.4f} with those of this report"
        text += f", over {_many(correlation_rows, 'row')}" if correlation_rows else ""
    return text + "."


def _many(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _paths(config: dict[str, Any]) -> dict[str, list[str]]:
    return {
        key: [config[key]["path"]] if isinstance(config[key]["path"], str) else list(config[key]["path"])
        for key in ("train", "queries")
    }


@dataclass(frozen=True)
class Sample:
    """Of rows that have a score, all or some of all over the run; numbers that are not known are NaN."""

    values: np.ndarray | None  # influences, rows × queries; None where there are no scores
    share: float  # of all rows that were read
    losses: np.ndarray
    sqnorms: np.ndarray
    tokens: np.ndarray

    @property
    def typical_loss(self) -> float | None:
        """That of the median row."""
        return float(np.median(self.losses)) if len(self.losses) else None


def _sample(run: Run, queries: list[int]) -> Sample:
    """The influences on `queries` of rows that have one, and the same rows' facts.

    The whole where that is at most `_SAMPLE` numbers, else about so many, from evenly spaced places in evenly spaced
    parts.
    """
    names, none = run.part_names(), np.empty(0)
    if not (run.has_scores and queries and names):
        return Sample(None, 0.0, none, none, none)
    counts = run.record.counts
    assert counts is not None  # of a run that is done
    share = min(1.0, _SAMPLE / max(1, counts.rows * counts.queries))
    chosen = names
    if share < 1:  # of few parts a little each: a part's rows are neighbours
        parts = min(len(names), max(_PLACES, math.ceil(share * len(names))))
        chosen = [names[n * len(names) // parts] for n in range(parts)]
        share *= len(names) / parts
    read, values, facts = 0, [np.empty((0, len(queries)), np.float32)], [np.empty((3, 0))]
    for part in run.parts(chosen, ["influence", "loss", "sqnorm", "tokens"], share):
        read += len(part)
        some = matrix(part["influence"])[:, queries]
        fine = np.isfinite(some).all(axis=1)
        values.append(some[fine])
        columns = [part[name].cast(pa.float64()).to_numpy() for name in ("loss", "sqnorm", "tokens")]
        facts.append(np.stack(columns)[:, fine])
    return Sample(np.concatenate(values), read / max(1, counts.rows), *np.concatenate(facts, axis=1))


class _Entries:
    """What the page says of each query and of the rows that are listed for it."""

    def __init__(
        self,
        run: Run,
        listed: Listed,
        tops: pa.Table,
        sample: Sample,
        room: int,
        entries: int,
        beside: Beside,
        seen: Pictured,
    ) -> None:
        self.norm = norm_of(run.blocks())
        self.listed, self.tops, self.sample, self.beside, self.seen = listed, tops, sample, beside, seen
        self.also = also(tops)
        self.are = run.config["queries"].get("are")
        first = min(entries, 2 * _ROWS * min(_QUERIES, len(listed.queries) or 1))
        self.rooms = {True: _room(room // 2, first), False: _room(room // 4, entries - first)}
        self.room_of_query = _room(room // 4, _QUERIES)

    def query(self, query: dict[str, Any], at: int) -> dict[str, Any]:
        """A query with its top rows; a row's `times` is its influence in units of the typical (median) one."""
        number = query["query"]
        mine = self.tops.filter(pc.equal(self.tops["query"], number)).to_pylist()
        strongest = max((abs(row["influence"]) for row in mine), default=0.0)
        values = None if self.sample.values is None else self.sample.values[:, at]
        typical = 0.0 if values is None or not len(values) else float(np.median(np.abs(values)))
        phrases = self.listed.phrases(number)
        pages: dict[str, list[list[dict[str, Any]]]] = {}
        told: list[str] = []
        for word in DIRECTIONS:
            rows = [row for row in mine if row["direction"] == word][:_MOST]
            about = doubts.of_first(rows[:_ROWS], self.listed, self.sample.losses, self.sample.tokens)
            told += [f"Most {word}: {line[0].lower()}{line[1:]}" for line in about]
            full = [self._row(row, phrases, strongest, typical) for row in rows]
            pages[word] = [full[k : k + _ROWS] for k in range(0, len(full), _ROWS)]
        if values is not None:
            told += doubts.of_query(values, self.sample.losses, self.sample.sqnorms, self.norm)
        first, why = asked(query, self.are, self.sample.typical_loss)
        extra: dict[str, Any] = {"pages": pages, "typical": typical or None, "histogram": None}
        extra["pictures"] = self.seen.queries.get(number, ())
        extra |= {"signs": None, "cumulative": None, "first": first, "why": why, "doubts": told}
        extra["said"] = said(self.listed.queries.get(number, ()), self.room_of_query, None, self.listed.rarity)
        if values is not None and len(values):
            extra["signs"] = {"helpful": float(np.mean(values < 0)), "harmful": float(np.mean(values > 0))}
            name = f"query {number}"
            extra["histogram"] = inline_svg(histogram(values), name, f"histogram of the influences on {name}")
            label = f"what share of the influence on {name} its strongest rows carry"
            extra["cumulative"] = inline_svg(cumulative(values), f"{name} carried", label)
        return {**query, **extra, "preview": query["preview"] and fold_ends(query["preview"], LONGER)}

    def _row(self, row: dict[str, Any], phrases: Phrases, strongest: float, typical: float) -> dict[str, Any]:
        first, number = row["rank"] <= _ROWS, row["row"]
        preview = row["preview"] and fold_ends(row["preview"], LONGER if first else _LATER)
        return {
            **row,
            "preview": marked(preview, phrases, self.listed.rarity),
            "width": 100 * abs(row["influence"]) / strongest,
            "times": abs(row["influence"]) / typical if typical else None,
            "facts": self.listed.facts.get(row["row"]),
            "name": called(row),
            "labels": self.listed.labels.of(number),
            **self.beside.row(number),
            "picture": self.seen.rows.get((row["query"], row["row"])),
            "also": told_of(self.also[row["row"]], row["query"]),
            "said": said(self.listed.rows.get(row["row"], ()), self.rooms[first], phrases, self.listed.rarity),
        }


def _layers(blocks: pa.Table) -> str | None:
    """By layer, how large gradients are; None where that is not known, or there is one layer."""
    sizes = dict(zip(blocks["block"].to_pylist(), blocks["mean_sqnorm"].to_pylist(), strict=True))
    if None in sizes.values() or len({layer_of(name)[0] for name in sizes}) < 2:
        return None
    label = "mean squared gradient norms by layer and module"
    return inline_svg(layers(sizes, "mean ‖g‖²"), "layers", label)


def _room(room: int, entries: int) -> int:
    return min(ROW_BYTES, room // max(entries, 1))


def _script() -> dict[str, str]:
    """The page's script, and what its content policy knows it by."""
    text = (resources.files("datainf_ray.runs.report") / "templates" / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "hash": f"sha256-{digest}"}


def _cleaned(config: dict[str, Any], pictures: bool = False) -> str:
    """A name for the corpus without some rows: a file where it is one, but of pictures, which may lie beside it."""
    first, *more = _paths(config)["train"]
    name = visible(first).rstrip("/").rpartition("/")[2]
    return f"clean-{name}" if "." in name and not (more or pictures or set("*?[{") & set(first)) else "cleaned"


def _overall(tops: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """By direction, the rows that stand among the first `_ROWS` of the most queries, if of more than one."""
    first = tops.filter(pc.less_equal(tops["rank"], _ROWS))
    grouped = first.group_by(["direction", "row", "id", "preview"]).aggregate([("query", "count"), ("rank", "mean")])
    often = grouped.filter(pc.greater(grouped["query_count"], 1))
    often = often.sort_by([("query_count", "descending"), ("rank_mean", "ascending"), ("row", "ascending")])
    return {word: often.filter(pc.equal(often["direction"], word)).slice(0, _ROWS).to_pylist() for word in DIRECTIONS}
