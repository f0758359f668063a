"""Where to cut: how much of all influence the first rows carry, and which of them stand out of what chance would give.

Of each query, and of all together (the mean of the influences, each query's divided by their root mean square, RMS),
and of each side, helpful and harmful:

- **The curve**: the share of the side's influence that its first k rows carry, and its elbow, where it lies highest
  above the straight line (Kneedle: Satopää, Albrecht, Irwin and Raghavan 2011). That height is how sharp the elbow is,
  from 0, all rows the same, to 1, one row has all: Hoover's index. Noise has an elbow, too: 0.30 if it is normal.
- **The rows that stand out**: those that stand apart from all others behind a gap such as a tail as heavy as theirs
  does not have (`gaps`). Sizes are distances from the median row. What is smooth has none, however heavy its tail.
- **Chance**, of several queries together: their influences with each query's rows exchanged at random, so that no two
  queries mean the same row. Where that, too, puts more than a tenth as many rows beyond the cut, the queries do not
  agree on those rows, and none stands out (the false discovery rate by permutation, SAM: Tusher, Tibshirani, Chu 2001).

Memory does not grow with the rows: three passes over examples/, and 0.1 MB for each of at most 256 queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from datainf_ray.common.words import counted, percent, printable
from datainf_ray.runs.gaps import apart
from datainf_ray.runs.magnitudes import Magnitudes, Sizes
from datainf_ray.runs.results import Run
from datainf_ray.runs.scores import Because, Scores
from datainf_ray.runs.top import DIRECTIONS

POINTS = 200  #: of a curve, at most
LEVEL = 0.02  #: the probability with which noise has rows that stand out: of all queries together, and of any of them
FALSE = 0.1  #: of the rows that stand out, those that chance would put there, at most
_SHOWN = 20  # queries in a person's table
FEWEST = 120  #: rows of which any can stand out: half of them are on a side, and 15 in the upper fourth of it
_AT_ONCE = 256  # queries that are counted in one pass
_EXCHANGES, _MOST = 19, 1 << 31  # of the queries' rows; influences that are exchanged in all, about


@dataclass(frozen=True)
class Elbow:
    """The row at which a curve lies highest above the straight line, the share there, and that height."""

    rows: int
    share: float
    sharpness: float


@dataclass(frozen=True)
class Curve:
    """The share of a side's influence that its first rows carry, at no more than 200 numbers of rows."""

    rows: tuple[int, ...]
    share: tuple[float, ...]
    chance: tuple[float, ...] | None  #: the shares where the queries' rows are exchanged


@dataclass(frozen=True)
class SideCut:
    """One side of a query, or of all queries together: where it may be cut."""

    query: int | None  #: which of `Cut.queries`; None: all of them together
    side: Because
    rows: int  #: that are on this side at all
    stand_out: int  #: the first rows, so many of them; 0: none does
    share: float  #: of the side's influence, what these carry
    above: float | None  #: their influence, in RMS, is beyond this; null where none stands out
    p: float  #: the chance that noise has a gap such as that behind them; 1 where none stands out
    by_chance: float | None  #: rows beyond the cut where the queries' rows are exchanged; null of one query
    elbow: Elbow
    chance_elbow: Elbow | None
    curve: Curve = field(repr=False)


@dataclass(frozen=True)
class Cut:
    """Where a run's rows may be cut."""

    runs: tuple[str, ...]
    rows: int
    scored: int  #: rows that have a score
    queries: tuple[str, ...]  #: ids
    seed: int
    sides: tuple[SideCut, ...]  #: helpful and harmful, of all queries together first

    def of(self, side: str) -> SideCut:
        """What is suggested of a side: by all queries together, or by the only one."""
        return next(one for one in self.sides if one.side == side)

    def each(self, side: str) -> list[SideCut]:
        """A side of each query alone."""
        return [one for one in self.sides if one.side == side and one.query is not None]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(line for side in DIRECTIONS for line in self.lines(side))

    def lines(self, side: str) -> list[str]:
        """One side as a person reads it: what is suggested, what that rests on, and the queries one by one."""
        one = self.of(side)
        what = f"all {side} influence on {counted(len(self.queries), 'query', 'queries')}"
        if one.stand_out:
            stands = "stands" if one.stand_out == 1 else "stand"
            rows = counted(one.stand_out, f"{side} row")
            lines = [f"{rows} {stands} out, with {percent(one.share)} of {what}"]
            lines.append(f"  noise has such a gap behind them with p = {one.p:.1g}")
            if one.by_chance is not None:
                lines[-1] += f"; queries whose rows are exchanged have {one.by_chance:.2g} rows beyond it"
        else:
            lines = [f"no {side} row stands out of what chance would give"]
            if self.scored < FEWEST:
                lines.append(f"  {counted(self.scored, 'row')} are too few to tell: it takes {FEWEST}")
        lines.append(f"  {what} is on {counted(one.rows, 'row')}: {_carried(one.curve)}")
        lines.append(f"  its elbow is at {_told(one.elbow)}")
        if one.chance_elbow is not None:
            lines[-1] += f"; of exchanged rows at {_told(one.chance_elbow)}"
        each = self.each(side) if len(self.queries) > 1 else []
        if each:
            lines.append(f"  {'rows that stand out':>19} {'share':>8} {'elbow':>9} {'sharp':>5}  query")
        for query in each[:_SHOWN]:
            name = printable(self.queries[query.query or 0], 60)
            numbers = f"{query.stand_out:>19} {percent(query.share):>8} {query.elbow.rows:>9}"
            lines.append(f"  {numbers} {query.elbow.sharpness:>5.2f}  {name}")
        if len(each) > _SHOWN:
            lines.append(f"  and {counted(len(each) - _SHOWN, 'more query', 'more queries')}: --json has them all")
        return lines


def _carried(curve: Curve) -> str:
    """What the first rows carry, at a few numbers of rows."""
    some = [rows for rows in (1, 10, 100, 1000, 10_000, 100_000) if rows < curve.rows[-1]]
    shares = np.interp(some, curve.rows, curve.share)
    told = [f"{percent(share)} by the first {rows:,}" for rows, share in zip(some, shares, strict=True)]
    return f"carried {', '.join(told)}" if told else "there is none to share"


def _told(elbow: Elbow) -> str:
    return f"{counted(elbow.rows, 'row')} ({percent(elbow.share)}), sharpness {elbow.sharpness:.2f}"


def cut_of(run: Run, *others: Run, seed: int = 0) -> Cut:
    """Where the rows of a finished run may be cut; `others` are runs of the same rows with more queries.

        >>> cut_of(run).of("harmful").stand_out
        13

    The same runs and `seed` give the same. Raises `RequestError` where a run is not done or stored no scores.
    """
    return cut_scores(Scores([run, *others], "harmful"), seed)


def cut_scores(scores: Scores, seed: int = 0) -> Cut:
    """`cut_of` of runs whose scores are known."""
    count = len(scores.queries)
    several = count > 1
    sides: list[SideCut] = []
    if several:
        sides += _cut(scores, None, [None], seed)
    for first in range(0, count, _AT_ONCE):
        some = list(range(first, min(count, first + _AT_ONCE)))
        sides += _cut(scores, some, some, seed)
    ids = tuple(query.id for query in scores.queries)
    return Cut(tuple(run.url for run in scores.runs), scores.rows, scores.scored, ids, seed, tuple(sides))


def _cut(scores: Scores, some: list[int] | None, names: Sequence[int | None], seed: int) -> Iterator[SideCut]:
    """Both sides of some queries, or with None those of all together."""
    around_zero, around_median = Magnitudes(len(names)), Magnitudes(len(names))
    chance, exchanges = Magnitudes(1), 0
    if some is None:
        exchanges = max(3, min(_EXCHANGES, _MOST // (scores.scored * len(scores.queries))))
    draw = np.random.default_rng(seed)
    for blame in _blamed(scores):
        around_zero.add(blame.mean(axis=1, keepdims=True) if some is None else blame[:, some])
        for _ in range(exchanges):
            chance.add(draw.permuted(blame, axis=0).mean(axis=1, keepdims=True))
    medians = np.array([around_zero.median(column) for column in range(len(names))])
    for blame in _blamed(scores):
        around_median.add((blame.mean(axis=1, keepdims=True) if some is None else blame[:, some]) - medians)
    level = LEVEL / (len(scores.queries) if some is not None else 1)
    for column, name in enumerate(names):
        for side in DIRECTIONS:
            harmful = side == "harmful"
            found = _side(
                around_zero.side(column, harmful),
                around_median.side(column, harmful),
                float(medians[column]) * (1 if harmful else -1),
                level,
                (chance.side(0, harmful), exchanges) if exchanges else None,
            )
            yield SideCut(name, "harmful" if harmful else "helpful", **found)


def _blamed(scores: Scores) -> Iterator[np.ndarray]:
    """The influences of rows that have some (rows × queries), in RMS."""
    for portion in scores.portions():
        there = ~np.isnan(portion.influence[:, 0])
        yield scores.sign * scores.blame(portion.influence[there])


def _side(
    sizes: Sizes, distances: Sizes, median: float, level: float, chance: tuple[Sizes, int] | None
) -> dict[str, Any]:
    """The fields of a `SideCut`. `median` is positive where it is on this side."""
    rows, p = apart(distances, level)
    above = None
    if rows:
        at = int(np.searchsorted(np.cumsum(distances.counts), rows))
        above = float(distances.sizes[at : at + 2].mean()) + median  # in the middle of the gap
        if above < 0:  # some are far from the median, and still on the other side
            rows, above = sizes.rows, 0.0
    by_chance = chance[0].above(above) / chance[1] if chance and above is not None else None
    if not rows or (by_chance or 0.0) > FALSE * rows:
        rows, above, p = 0, None, 1.0
    points = _points(sizes.rows)
    again = None if chance is None else _spread(chance[0], points * chance[1])
    return {
        "rows": sizes.rows,
        "stand_out": rows,
        "share": float(_spread(sizes, np.array([rows]))[0]),
        "above": above,
        "p": p,
        "by_chance": by_chance,
        "elbow": _elbow(sizes, 1),
        "chance_elbow": None if chance is None else _elbow(*chance),
        "curve": Curve(
            tuple(points.tolist()),
            tuple(_spread(sizes, points).tolist()),
            None if again is None else tuple(again.tolist()),
        ),
    }


def _points(rows: int) -> np.ndarray:
    """0, the first rows one by one, then numbers at equal ratios, and all rows."""
    found = np.unique(np.round(np.geomspace(1, max(rows, 1), POINTS - 1)).astype(np.int64))
    return np.concatenate([[0], found]) if rows else np.zeros(1, np.int64)


def _spread(sizes: Sizes, rows: np.ndarray) -> np.ndarray:
    """The share of all that the first rows carry; 0 where there is nothing."""
    return sizes.carried(rows) / (sizes.total or math.inf)


def _elbow(sizes: Sizes, times: int) -> Elbow:
    """Of a curve of which each row is there `times` times."""
    if not sizes.rows:
        return Elbow(0, 0.0, 0.0)
    ends = np.cumsum(sizes.counts)
    shares = _spread(sizes, ends)
    heights = shares - ends / sizes.rows
    at = int(np.argmax(heights))
    return Elbow(round(int(ends[at]) / times), float(shares[at]), max(0.0, float(heights[at])))
