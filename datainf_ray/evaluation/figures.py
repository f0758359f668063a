"""How well an order of rows finds those that are true: AUC, average precision, recall@k, MRR; and their intervals.

All four depend on an order only through its levels: rows with equal scores are one level, and the levels between two
with true rows may be taken as one. Rows of a level tie. AUC counts a tied pair as half, average precision is taken at
the end of each level, recall@k is what a random order within the level gives on average, and MRR is one over the
average rank of the first level with a true row. So no figure depends on how the rows happen to lie in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95  #: of all intervals
_AT_ONCE = 2**22  # counts of resamples that are in memory at a time
_FEW = 16  # of a level's rows, on average: with more, counts are drawn at once and not row by row


class Levels(NamedTuple):
    """An order of rows from its first place on: the number of true rows and of others in each level."""

    true: np.ndarray  # levels, int64
    false: np.ndarray  # levels, int64


def levels_of(scores: np.ndarray, truth: np.ndarray) -> Levels:
    """The levels of the rows by descending score; rows without one (NaN) make the last level.

    `scores` are floats and `truth` booleans, one of each per row; some row must be true and some not.
    """
    known = np.where(np.isnan(scores), -np.inf, scores)
    values, level = np.unique(-known, return_inverse=True)
    true = np.bincount(level[truth], minlength=len(values))
    false = np.bincount(level[~truth], minlength=len(values))
    with_true = true > 0
    begins = np.flatnonzero(with_true | np.append(True, with_true[:-1]))
    return Levels(np.add.reduceat(true, begins), np.add.reduceat(false, begins))


def figures_of(levels: Levels, ks: Sequence[int]) -> np.ndarray:
    """AUC, average precision, MRR and the recall at each of `ks`, in this order.

    The counts may have leading dimensions (… × levels), and so has what comes out then (… × figures).
    """
    true, false = levels
    size = true + false
    place, found = np.cumsum(size, axis=-1), np.cumsum(true, axis=-1)
    positives, negatives = found[..., -1:], place[..., -1:] - found[..., -1:]
    behind = negatives - (place - found) + false / 2  # rows that are not true behind a level, and half of those in it
    auc = (true * behind).sum(-1) / (positives * negatives)[..., 0]
    precision = (true * (found / np.maximum(place, 1))).sum(-1) / positives[..., 0]
    first = (true > 0).argmax(-1)[..., None]
    rank = np.take_along_axis(place - size, first, -1) + (np.take_along_axis(size, first, -1) + 1) / 2
    recalls = [_recall(true, size, place, found, k) for k in ks]
    return np.stack([auc, precision, 1 / rank[..., 0], *recalls], -1)


def _recall(true: np.ndarray, size: np.ndarray, place: np.ndarray, found: np.ndarray, k: int) -> np.ndarray:
    """The expected share of true rows among the first `k`; of the level that is cut, so many as its share of them."""
    k = min(k, int(place[..., -1].max()))
    cut = (place >= k).argmax(-1)[..., None]
    of_cut, in_cut, at, up_to = (np.take_along_axis(a, cut, -1)[..., 0] for a in (true, size, place, found))
    taken = np.where(in_cut > 0, of_cut * (k - (at - in_cut)) / np.maximum(in_cut, 1), 0)
    return (up_to - of_cut + taken) / found[..., -1]


def by_chance(rows: int, true: int, ks: Sequence[int]) -> np.ndarray:
    """What `figures_of` gives for a random order of `rows`, of which so many are true, on average over all orders."""
    ranks = np.arange(1, rows - true + 2, dtype=np.float64)  # that the first true row can have
    none_before = np.cumprod(np.append(1.0, (rows - true - ranks[:-1] + 1) / (rows - ranks[:-1] + 1)))
    mrr = np.sum(none_before * true / (rows - ranks + 1) / ranks)
    harmonic = np.sum(1 / np.arange(1, rows + 1))
    precision = (harmonic + (true - 1) / (rows - 1) * (rows - harmonic)) / rows
    return np.array([0.5, precision, mrr, *(min(k, rows) / rows for k in ks)])


def resampled_rows(levels: Levels, ks: Sequence[int], resamples: int, seed: int) -> np.ndarray:
    """The figures of an order (resamples × figures) whose rows are drawn again, the true ones and the others apart.

    So a resample has as many true rows as there are, which recall@k of that number needs.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _AT_ONCE // len(levels.true))
    parts = [
        figures_of(Levels(*(_drawn(counts, count, random) for counts in levels)), ks)
        for count in _portions(resamples, step)
    ]
    return np.concatenate(parts)


def _drawn(counts: np.ndarray, times: int, random: np.random.Generator) -> np.ndarray:
    """The same number of rows with replacement, `times` over (times × levels): how many are of each level."""
    rows = int(counts.sum())
    if rows > _FEW * len(counts):
        return random.multinomial(rows, counts / rows, size=times)
    level = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    drawn = [np.bincount(level[random.integers(0, rows, rows, np.uint32)], minlength=len(counts)) for _ in range(times)]
    return np.stack(drawn)


def resampled_queries(figures: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The means (resamples × figures) of the queries' figures (queries × figures), of queries that are drawn again."""
    random = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _AT_ONCE // figures.size)
    parts = [
        figures[random.integers(0, len(figures), (count, len(figures)))].mean(axis=1)
        for count in _portions(resamples, step)
    ]
    return np.concatenate(parts)


def interval(resampled: np.ndarray) -> np.ndarray:
    """The bounds (figures × 2) between which `CONFIDENCE` of the resamples lie."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(resampled, [tail, 1 - tail], axis=0).T


def _portions(whole: int, step: int) -> Iterator[int]:
    yield from (min(step, whole - begun) for begun in range(0, whole, step))
