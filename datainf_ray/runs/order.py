"""The first k rows of an order, the largest value first and between equals the lowest row, without sorting them.

A float's bits, put right for its sign, are ordered as the float is. So the k-th largest value of any number of rows is
found 16 bits at a time, by counting: passes over the values, and no memory that grows with them. Rows may be in groups,
which have an order each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_DIGIT = 16  # bits of a key that are counted in one pass
_LAST = np.uint64((1 << _DIGIT) - 1)

Blocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  #: groups (int64) and values of rows, in their order


@dataclass(frozen=True)
class Cuts:
    """Where each group's order is cut: rows of larger values are before it, and so many of the first with this one."""

    values: np.ndarray
    ties: np.ndarray

    def before(self) -> Before:
        return Before(self)


class Before:
    """Which rows are before the cuts, asked in the rows' order."""

    def __init__(self, cuts: Cuts) -> None:
        self._values, self._left = cuts.values, cuts.ties.copy()

    def __call__(self, groups: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Of rows with these groups and values, which follow on those that were asked for last; NaN: never."""
        edge = self._values[groups]
        found = values > edge
        equal = np.flatnonzero((values == edge) & (self._left[groups] > 0))
        for group in np.unique(groups[equal]):
            here = equal[groups[equal] == group][: self._left[group]]
            found[here] = True
            self._left[group] -= len(here)
        return found


def cuts(blocks: Blocks, wanted: np.ndarray) -> Cuts:
    """The cuts behind the first `wanted` rows of each group (groups, int64), or behind all where it has no more.

    `blocks` gives the same rows whenever it is called. Values are float32 or float64, all of one kind; rows of NaN are
    not there.
    """
    wanted = np.asarray(wanted, np.int64)
    left = wanted.copy()  # rows to be taken of those that begin with the prefix
    prefix = np.zeros(len(wanted), np.uint64)
    going = left > 0
    bits, known = 0, 0  # of a key in all, and those that are known
    while going.any() and (known == 0 or known < bits):
        pairs, counts, bits, kind = _counted(blocks, going, prefix, known)
        known += _DIGIT
        edges = np.searchsorted(pairs, np.arange(len(wanted) + 1, dtype=np.uint64) << np.uint64(_DIGIT))
        for group in np.flatnonzero(going):
            here = slice(edges[group], edges[group + 1])
            upto = np.cumsum(counts[here])
            if not len(upto) or upto[-1] < left[group]:  # it has no more
                going[group] = False
                continue
            at = int(np.searchsorted(upto, left[group]))
            left[group] -= upto[at - 1] if at else 0
            prefix[group] = (prefix[group] << np.uint64(_DIGIT)) | (pairs[here][at] & _LAST)
    values = np.where(going, _values(prefix, kind), -np.inf) if going.any() else np.full(len(wanted), -np.inf)
    values[wanted <= 0] = np.inf
    return Cuts(values, np.where(going, left, 0))


def _counted(
    blocks: Blocks, going: np.ndarray, prefix: np.ndarray, known: int
) -> tuple[np.ndarray, np.ndarray, int, np.dtype]:
    """How often each next digit follows the prefixes, of which `known` bits are known: sorted group << 16 | digit, and
    counts; and the size of a key in bits, and the values' kind.
    """
    pairs, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    bits, kind = 64, np.dtype(np.float64)
    for groups, values in blocks():
        kind = values.dtype
        bits = 8 * kind.itemsize
        keys = _keys(values)
        some = ~np.isnan(values) & going[groups]
        if known:
            some &= keys >> np.uint64(bits - known) == prefix[groups]
        digits = (keys[some] >> np.uint64(bits - known - _DIGIT)) & _LAST
        more, times = np.unique((groups[some].astype(np.uint64) << np.uint64(_DIGIT)) | digits, return_counts=True)
        pairs, at = np.unique(np.concatenate([pairs, more]), return_inverse=True)
        counts = np.bincount(at, np.concatenate([counts, times]), len(pairs)).astype(np.int64)
    return pairs, counts, bits, kind


def _keys(values: np.ndarray) -> np.ndarray:
    """Floats as integers in the opposite order, so that the largest comes first."""
    width = 8 * values.dtype.itemsize
    bits = (values + 0).view(f"u{values.dtype.itemsize}").astype(np.uint64)  # -0 is 0
    sign, whole = np.uint64(1 << (width - 1)), np.uint64((1 << width) - 1)
    return np.where(bits & sign != 0, bits, ~(bits | sign) & whole)


def _values(keys: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The inverse of `_keys`."""
    width = 8 * kind.itemsize
    sign, whole = np.uint64(1 << (width - 1)), np.uint64((1 << width) - 1)
    bits = np.where(keys & sign != 0, keys, ~keys & whole & ~sign)
    return bits.astype(f"u{kind.itemsize}").view(kind)
