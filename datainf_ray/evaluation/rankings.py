"""The orders in which a run would have its training rows looked through: the higher a score, the earlier the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datainf_ray.common.words import counted, percent
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, matrix, norm_of

Side = Literal["harmful", "helpful", "largest"]
Scores = Callable[[Sequence[int]], Iterator[np.ndarray]]  #: for each of these queries, the scores of all rows

#: Which rows are looked at first: how an influence becomes a score.
SIDES: dict[Side, Callable[[np.ndarray], np.ndarray]] = {
    "harmful": lambda influence: influence,
    "helpful": lambda influence: -influence,
    "largest": np.abs,
}
_AT_ONCE = 2**27  # influences that are in memory at a time


@dataclass(frozen=True)
class Ranking:
    """One order of the rows, the same for every query (`fixed`) or one for each (`each`); NaN: a row has no score."""

    name: str
    run: str | None = None  #: the URL of the run that it is of
    fixed: np.ndarray | None = None  #: n scores
    each: Scores | None = None
    searched: Callable[[np.ndarray], np.ndarray] = lambda scores: scores  #: what makes a score of what `each` gives


def influence_of(run: Run, name: str, side: Side) -> Ranking:
    """The order by a run's influence."""
    return Ranking(name, run.url, each=lambda queries: _influences(run, queries), searched=SIDES[side])


def facts_of(run: Run) -> list[Ranking]:
    """The orders by loss and by the norm of the gradient, or of what stands in its place, the largest first.

    NaN where a row has none.
    """
    table = run.examples(["loss", "sqnorm"])
    found = [
        Ranking(name, run.url, table[column].to_numpy(zero_copy_only=False).astype(np.float32))
        for name, column in (("loss", "loss"), (norm_of(run.blocks()), "sqnorm"))
    ]
    return [ranking for ranking in found if _has_any(ranking)]


def self_influence_of(run: Run, name: str) -> list[Ranking]:
    """The order by self-influence, if the run has it: the row first whose weight lowers its own loss most."""
    if not run.config["results"].get("self_influence"):
        return []
    own = run.examples(["self_influence"])["self_influence"].to_numpy(zero_copy_only=False)
    return [Ranking(name, run.url, -own.astype(np.float32))]


def without_score(run: Run) -> list[str]:
    """A line that says how many of a run's rows have no score, if any."""
    counts = run.record.counts
    assert counts is not None  # of a run that is done
    bad = sum(count for status, count in counts.status.items() if status != OK)
    if not bad:
        return []
    has = "has" if bad == 1 else "have"
    return [f"{counted(bad, 'row')} ({percent(bad / counts.rows)}) {has} no score in {run.url}, and stand last"]


def _has_any(ranking: Ranking) -> bool:
    return ranking.fixed is not None and not np.isnan(ranking.fixed).all()


def _influences(run: Run, queries: Sequence[int]) -> Iterator[np.ndarray]:
    """The influence of all rows on each of these queries, from as few passes over examples/ as memory allows."""
    counts = run.record.counts
    assert counts is not None  # of a run that is done
    step = max(1, _AT_ONCE // counts.rows)
    for first in range(0, len(queries), step):
        some = list(queries[first : first + step])
        found = np.full((len(some), counts.rows), np.nan, np.float32)
        for part in run.parts(run.part_names(), ["row", "influence"]):
            found[:, part["row"].to_numpy()] = matrix(part["influence"])[:, some].T
        yield from found
