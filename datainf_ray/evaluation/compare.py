"""`evaluate`: from a run and a column of its corpus to how well its scores find the rows that the column marks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import failing
from datainf_ray.common.words import counted, meant
from datainf_ray.config import options_among
from datainf_ray.curate.source import Source, require_same, source_of
from datainf_ray.evaluation.figures import (
    by_chance,
    figures_of,
    interval,
    levels_of,
    resampled_queries,
    resampled_rows,
)
from datainf_ray.evaluation.lines import SHARES, Line
from datainf_ray.evaluation.rankings import (
    SIDES,
    Ranking,
    Side,
    facts_of,
    influence_of,
    self_influence_of,
    without_score,
)
from datainf_ray.evaluation.result import Evaluation
from datainf_ray.evaluation.truth import (
    Marked,
    SameClass,
    Truth,
    marked,
    same_class,
    scored_queries,
)
from datainf_ray.evaluation.words import SharedWords
from datainf_ray.request.groups import query_groups
from datainf_ray.runs.results import Run, open_run

RESAMPLES = 1000
CHANCE = "random order"


def evaluate(
    run: str | Run,
    *others: str | Run,
    truth: str | None = None,
    same: str | None = None,
    side: Side | None = None,
    k: Sequence[int] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    bm25: bool = True,
    **overrides: Any,
) -> Evaluation:
    """How well a finished run's scores find the rows that a column of its corpus marks, beside what else could.

    `truth` names a column of the training corpus, a boolean or 0 and 1, or COLUMN=VALUE: the rows that are to be found,
    such as those with a flipped label. `same` names a column that both corpora have: each query is to find the rows
    of its own class. One of the two must be given. The orders that are compared are by influence, of `run` and of
    `others` on the same rows; by the run's loss and gradient norms, the largest first; by self-influence, the most
    negative first; by BM25, the most words in common with the query first; and a random one.

    `side` says which influences are looked at first: "harmful" (positive ones; the default with `truth`), "helpful"
    (negative ones; the default with `same`) or "largest" (of either sign, as the paper's notebooks take the recall of
    a class; its AUC they take by the helpful ones). The recall is taken at each of `k`, and where none is given at the
    number of rows that are to be found. Intervals are of 95 %, from `resamples` (0: none) of the rows, the true ones
    and the others apart; or of the queries, where the figures are a mean over these.

    `overrides` replace keys of the runs' configuration, as `**{"train.path": …}` does where the corpus was moved.
    Raises `RequestError` where a run is not done, its corpus is not what it was, or the column does not tell.

        >>> print(datainf_ray.evaluate("runs/first", truth="flipped"))
    """
    if (truth is None) == (same is None):
        raise RequestError("evaluate", None, "want one of --truth COLUMN and --same COLUMN")
    for value in k:
        if value < 1:
            raise RequestError("-k", value, "want at least 1")
    if resamples < 0 or resamples == 1:
        raise RequestError("--resamples", resamples, "want 0, or at least 2")
    if seed < 0:
        raise RequestError("--seed", seed, "want 0 or more")
    chosen = side or ("harmful" if truth is not None else "helpful")
    if chosen not in SIDES:
        raise RequestError("--side", side, "no such side", meant(str(side), SIDES))
    with failing():
        runs = [_opened(one, overrides) for one in (run, *others)]
        for at, one in enumerate(runs):
            if one.url in [before.url for before in runs[:at]]:
                raise RequestError("run", one.url, "is named twice", "name each once")
        sources = [source_of(one, **overrides) for one in runs]
        for other in sources[1:]:
            require_same(sources[0], other, "train")
            if same is not None:
                require_same(sources[0], other, "queries")
        wanted: Truth = marked(sources[0], truth) if truth is not None else same_class(sources[0], cast(str, same))
        judge = _Judge(wanted, tuple(dict.fromkeys(k)), resamples, seed)
        return _evaluated(sources, judge, chosen, bm25)


def _opened(run: str | Run, overrides: dict[str, Any]) -> Run:
    return run if isinstance(run, Run) else open_run(run, options_among(overrides))


def _evaluated(sources: list[Source], judge: _Judge, side: Side, bm25: bool) -> Evaluation:
    first, names, notes = sources[0], _names([source.run for source in sources]), []
    asked = _queries(sources, judge.truth)
    queries = asked[0]
    lines: list[Line] = []
    for source, name, own in zip(sources, names, asked, strict=True):
        if source.run.has_scores:
            lines += judge.lines(influence_of(source.run, name, side), own)
        else:
            notes.append(f"{source.run.url} stored no scores (results.scores: false): its influence is left out")
        for ranking in self_influence_of(source.run, f"{name}, self-influence"):
            lines += judge.lines(ranking, queries)
        notes += without_score(source.run)
    for ranking in facts_of(first.run):
        lines += judge.lines(ranking, queries)
    if bm25:
        groups, _ = query_groups(first.config, first.corpus("queries"))
        words = SharedWords(first.corpus("train"), first.corpus("queries"), groups)
        if words.found:
            lines += judge.lines(Ranking("BM25", each=words.scores), queries)
        else:
            notes.append("BM25 is left out: the rows have no words")
    lines.append(judge.chance(queries))
    count = first.run.queries().num_rows
    if len(queries) < count:
        what = counted(count - len(queries), "query", "queries")
        notes.append(f"{what} of {count:,} left out: no score, or no row that is to be found")
    return Evaluation(
        first.run.url,
        judge.truth.column,
        isinstance(judge.truth, SameClass),
        len(judge.truth.rows),
        int(judge.truth.rows.sum()) if isinstance(judge.truth, Marked) else None,
        queries.tolist(),
        side,
        judge.resamples,
        judge.seed,
        judge.names,
        lines,
        notes,
    )


def _queries(sources: list[Source], truth: Truth) -> list[np.ndarray]:
    """The numbers of the queries that count in each run.

    Where each looks for the rows of its own class, those that count in all of them: means are over the same queries.
    """
    found = [scored_queries(source, truth) for source in sources]
    if not isinstance(truth, SameClass):
        return found
    common = functools.reduce(np.intersect1d, found)
    if not len(common):
        raise RequestError("run", sources[-1].run.url, "no query has scores in all of the runs")
    return [common] * len(sources)


def _names(runs: list[Run]) -> list[str]:
    """What each run's influence is called: its method; where several have the same, with as much of the directory's
    end as tells these apart.
    """
    methods = [str(run.config["method"]["name"]) for run in runs]
    paths = [run.url.rstrip("/").split("/") for run in runs]
    names = []
    for method, path in zip(methods, paths, strict=True):
        alike = [other for name, other in zip(methods, paths, strict=True) if name == method]
        parts = next(n for n in range(1, len(path) + 1) if sum(one[-n:] == path[-n:] for one in alike) == 1)
        names.append(f"{method} ({'/'.join(path[-parts:])})" if len(alike) > 1 else method)
    return names


@dataclass(frozen=True)
class _Judge:
    """What orders are judged by."""

    truth: Truth
    ks: tuple[int, ...]  #: (): the number of rows that are to be found
    resamples: int
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The figures' names."""
        own = "class size" if isinstance(self.truth, SameClass) else f"{int(self.truth.rows.sum())}"
        return ("AUC", "average precision", "MRR", *(f"recall@{k}" for k in self.ks or (own,)))

    def lines(self, ranking: Ranking, queries: np.ndarray) -> list[Line]:
        """The lines of one order: of all rows, and where each query has its own the mean over the queries."""
        if ranking.fixed is not None:
            if isinstance(self.truth, Marked):
                return [self._of_rows(ranking, ranking.fixed)]
            return [self._of_queries(ranking, self._fixed(ranking.fixed, queries), queries)]
        assert ranking.each is not None  # as a ranking has one of the two
        total, figures = np.zeros(len(self.truth.rows)), []
        for query, found in zip(queries, ranking.each(queries.tolist()), strict=True):
            figures.append(self._figures(ranking.searched(found), self.truth.of(query)))
            total += found
        lines = [self._of_queries(ranking, np.stack(figures), queries)]
        if isinstance(self.truth, SameClass):
            return lines
        mean = self._of_rows(ranking, ranking.searched(total / len(queries)))
        return [mean, *lines] if len(queries) > 1 else [mean]

    def chance(self, queries: np.ndarray) -> Line:
        """The line of a random order."""
        counts = [int(self.truth.of(query).sum()) for query in queries]
        figures = {true: by_chance(len(self.truth.rows), true, self.ks or (true,)) for true in set(counts)}
        curve = SHARES if isinstance(self.truth, Marked) else None
        return Line(CHANCE, CHANCE, None, "chance", np.mean([figures[n] for n in counts], axis=0), curve=curve)

    def _figures(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return figures_of(levels_of(scores, truth), self.ks or (int(truth.sum()),))

    def _fixed(self, scores: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """The figures of the same order for each query (queries × figures), computed once for each class."""
        assert isinstance(self.truth, SameClass)
        classes, of_query = np.unique(self.truth.queries[queries], return_inverse=True)
        return np.stack([self._figures(scores, self.truth.rows == one) for one in classes])[of_query]

    def _of_rows(self, ranking: Ranking, scores: np.ndarray) -> Line:
        true = int(self.truth.rows.sum())
        levels, ks = levels_of(scores, cast(Marked, self.truth).rows), self.ks or (true,)
        looked = np.maximum(1, np.round(SHARES * len(scores))).astype(int)
        curve = figures_of(levels, looked.tolist())[-len(looked) :]
        curve[0] = 0
        bounds = interval(resampled_rows(levels, ks, self.resamples, self.seed)) if self.resamples else None
        return Line(ranking.name, ranking.name, ranking.run, "rows", figures_of(levels, ks), bounds, curve=curve)

    def _of_queries(self, ranking: Ranking, figures: np.ndarray, queries: np.ndarray) -> Line:
        several = len(figures) > 1 and self.resamples
        bounds = interval(resampled_queries(figures, self.resamples, self.seed)) if several else None
        label = f"{ranking.name}, by query" if isinstance(self.truth, Marked) else ranking.name
        mean = figures.mean(axis=0)
        return Line(ranking.name, label, ranking.run, "queries", mean, bounds, each=figures, queries=queries)
