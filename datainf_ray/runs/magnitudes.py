"""How numbers are spread on either side of zero: counts and sums by size, in memory that does not grow with the rows.

A float32's first bits are its power of two and the first digits behind it: those are the bins, 64 in each doubling, so
that numbers of one bin are within 1.6 % of one another. Where each bin holds one number, what is read from them is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIGITS = 6  # bits behind the power of two
_DROPPED = 23 - DIGITS
_SMALLEST, _LARGEST = -40, 24  # powers of two; what is beyond is counted with these
_BASE = (127 + _SMALLEST) << DIGITS
_BINS = (_LARGEST - _SMALLEST) << DIGITS


@dataclass(frozen=True)
class Sizes:
    """The numbers of one sign, the largest first: bins that hold some, with the mean size in each, and how many."""

    sizes: np.ndarray  #: float64, above zero
    counts: np.ndarray  #: int64

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def total(self) -> float:
        return float(self.sizes @ self.counts)

    def above(self, size: float) -> int:
        """How many are larger."""
        return int(self.counts[self.sizes > size].sum())

    def carried(self, rows: np.ndarray) -> np.ndarray:
        """The sum of the first `rows` numbers, for each of these."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        return np.interp(rows, ends, np.concatenate([[0], np.cumsum(self.sizes * self.counts)]))


class Magnitudes:
    """Columns of numbers, counted."""

    def __init__(self, columns: int) -> None:
        self._counts = np.zeros((columns, 2, _BINS), np.int64)
        self._sums = np.zeros((columns, 2, _BINS))
        self._zeros = np.zeros(columns, np.int64)

    def add(self, values: np.ndarray) -> None:
        """More numbers (rows × columns); those that are NaN are not there."""
        values = np.asarray(values, np.float32)
        self._zeros += (values == 0).sum(axis=0)
        some = np.abs(values) > 0
        found = values[some]
        column = np.broadcast_to(np.arange(values.shape[1]), values.shape)[some]
        bins = np.clip((np.abs(found).view(np.int32) >> _DROPPED) - _BASE, 0, _BINS - 1)
        places = (2 * column + (found > 0)) * _BINS + bins
        size = self._counts.size
        self._counts += np.bincount(places, minlength=size).reshape(self._counts.shape)
        self._sums += np.bincount(places, np.abs(found.astype(np.float64)), size).reshape(self._sums.shape)

    def side(self, column: int, positive: bool) -> Sizes:
        """The numbers of one sign in a column."""
        counts, sums = self._counts[column, int(positive), ::-1], self._sums[column, int(positive), ::-1]
        there = counts > 0
        return Sizes(sums[there] / counts[there], counts[there])

    def median(self, column: int) -> float:
        """The number in the middle of a column, or the mean of those in its bin."""
        below, above = self.side(column, False), self.side(column, True)
        values = np.concatenate([-below.sizes, [0.0], above.sizes[::-1]])
        upto = np.cumsum(np.concatenate([below.counts, self._zeros[[column]], above.counts[::-1]]))
        return float(values[np.searchsorted(upto, (upto[-1] + 1) // 2)])
