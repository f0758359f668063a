"""What each row is blamed with: its influences on the queries of one run or several, as one number.

Queries whose losses are of different sizes have influences of different sizes, so each query's are divided by their
root mean square (RMS) over the rows. More is worse: the sign stays where the queries are good answers and the rows that
raise their loss are to blame (`harmful`), and is turned around where they are mistakes and the rows that lower their
loss taught them (`helpful`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import RequestError
from datainf_ray.runs.column import BLOCK, Column
from datainf_ray.runs.order import cuts
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, matrix

Because = Literal["helpful", "harmful"]
Across = Literal["mean", "max", "votes"]
ACROSS = ("mean", "max", "votes")
SIGNS: dict[Because, int] = {"helpful": -1, "harmful": 1}

_AT_ONCE = 1 << 22  # influences that are in memory at a time


@dataclass(frozen=True)
class Query:
    """A query of one of the runs that has scores."""

    run: int  #: which of the runs
    number: int  #: in its run
    id: str


@dataclass(frozen=True)
class Portion:
    """Some rows that follow on one another."""

    first: int
    influence: np.ndarray  #: rows × queries (float32), as the runs have it; NaN throughout a row without a score
    status: pa.ChunkedArray  #: "ok" where it is that in every run, else that of the first where it is not
    tables: list[pa.Table]  #: of each run, the other columns that were asked for

    def __len__(self) -> int:
        return len(self.status)


class Scores:
    """The influences of finished runs on the same rows, and what follows from them for each row.

    Raises `RequestError` where a run stored no scores, or no query has any.
    """

    def __init__(self, runs: Sequence[Run], because: Because) -> None:
        self.runs, self.sign = list(runs), SIGNS[because]
        self.queries = [query for number, run in enumerate(runs) for query in _queries(run, number)]
        counts = runs[0].record.counts
        assert counts is not None  # of a run that is done
        self.rows = counts.rows
        self.portion = max(1, min(BLOCK, _AT_ONCE // len(self.queries)))  #: rows in a portion, but for the last
        self.missing = Counter[str]()  #: rows without a score, by status
        squares, scored = np.zeros(len(self.queries)), 0
        for portion in self.portions():
            there = ~np.isnan(portion.influence[:, 0])
            for status in portion.status.filter(pa.array(~there)).to_pylist():
                self.missing[status] += 1
            fine = portion.influence[there].astype(np.float64)
            squares += np.einsum("nq,nq->q", fine, fine)
            scored += len(fine)
        if not scored:
            raise RequestError("run", runs[0].url, "no row has a score")
        self.scored = scored  #: rows that have a score in every run
        rms = np.sqrt(squares / scored)
        self.rms = np.where(rms > 0, rms, 1.0)  #: of each query

    def portions(self, columns: Sequence[str] = ()) -> Iterator[Portion]:
        """All rows in order, with more columns of examples/ where they are asked for."""
        wanted = list(dict.fromkeys(["status", "influence", *columns]))
        readers = [in_order(run, wanted, self.portion) for run in self.runs]
        for first in itertools.count(0, self.portion):
            tables = [next(reader, None) for reader in readers]
            there = [table for table in tables if table is not None]
            if len(there) < len(tables) or len({len(table) for table in there}) > 1:
                if there:
                    raise RequestError("run", self.runs[-1].url, "has not as many rows as the first run")
                return
            yield self._portion_of(first, there)

    def _portion_of(self, first: int, tables: list[pa.Table]) -> Portion:
        status = tables[-1]["status"]
        for table in tables[-2::-1]:
            status = pc.if_else(pc.equal(table["status"], OK), status, table["status"])
        parts = []
        for number, table in enumerate(tables):
            own = [query.number for query in self.queries if query.run == number]
            parts.append(matrix(table["influence"])[:, own])
        influence = np.concatenate(parts, axis=1)
        missing = pc.not_equal(status, OK).to_numpy() | np.isnan(influence).any(axis=1)
        influence[missing] = np.nan
        return Portion(first, influence, status, tables)

    def blame(self, influence: np.ndarray) -> np.ndarray:
        """Of each row and query, in units of the query's RMS (rows × queries, float64)."""
        return influence * (self.sign / self.rms)

    def worst(self, influence: np.ndarray) -> np.ndarray:
        """For each row the query that blames it most; 0 where it has no score."""
        return np.argmax(np.nan_to_num(self.blame(influence), nan=-np.inf), axis=1)

    def across(self, how: Across, votes: int | None = None) -> Column:
        """What each row is blamed with by all queries together; NaN where it has no score.

        `mean` and `max` are over the queries' own numbers. By `votes` each query names the `votes` rows that it blames
        most; a row has as many as name it, and less than one more by its mean, so that equals are in that order.
        """
        found = Column(self.rows)
        voted = self._named(votes) if how == "votes" and votes is not None else None
        for portion in self.portions():
            blame = self.blame(portion.influence)
            values = blame.max(axis=1) if how == "max" else blame.mean(axis=1)
            if voted is not None:
                values = voted.read(portion.first, portion.first + len(portion)) + (np.arctan(values) / np.pi + 0.5)
            found.put(portion.first, values)
        return found

    def _named(self, votes: int) -> Column:
        """How many queries have each row among the `votes` that they blame most."""
        count = len(self.queries)

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for portion in self.portions():
                blame = self.blame(portion.influence)
                yield np.tile(np.arange(count), len(portion)), blame.reshape(-1)

        before = cuts(blocks, np.full(count, votes)).before()
        found = Column(self.rows, np.float64)
        for (groups, values), first in zip(blocks(), itertools.count(0, self.portion), strict=False):
            found.put(first, before(groups, values).reshape(-1, count).sum(axis=1))
        return found


def in_order(run: Run, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Every row of a run that is done, in order, `size` at a time; the last may be fewer. Memory is for a few portions.

    Raises `RequestError` where the run's files are damaged.
    """
    held: list[pa.Table] = []
    count = seen = 0
    names = list(dict.fromkeys(["row", *columns]))
    for table in run.parts(run.part_names(), names):
        if not np.array_equal(table["row"].to_numpy(), np.arange(seen, seen + len(table))):
            raise RequestError("run", run.url, "its rows are not in their order", "run the same configuration again")
        held.append(table)
        count, seen = count + len(table), seen + len(table)
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)


def _queries(run: Run, number: int) -> list[Query]:
    """The queries of a run that have scores."""
    table = run.queries()
    if not run.has_scores:
        raise RequestError("run", run.url, "stored no scores (results.scores: false)", "run it with results.scores")
    found = [
        Query(number, query, name)
        for query, name, status in zip(*(table[name].to_pylist() for name in ("query", "id", "status")), strict=True)
        if status == OK
    ]
    if not found:
        raise RequestError("run", run.url, "no query has scores")
    return found
