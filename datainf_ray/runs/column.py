"""Numbers, one a row, in a file without a name, so that memory does not grow with the rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

BLOCK = 1 << 16  #: rows that are looked at together


class Column:
    """A column of `rows` numbers, written and read in any order; the file goes with the object."""

    def __init__(self, rows: int, kind: DTypeLike = np.float64) -> None:
        self.rows, self._kind = rows, np.dtype(kind)
        self._file = tempfile.TemporaryFile(prefix="datainf-")  # noqa: SIM115 - it is kept

    def put(self, first: int, values: np.ndarray) -> None:
        """Rows first, first + 1, … are `values`."""
        self._file.seek(first * self._kind.itemsize)
        self._file.write(np.ascontiguousarray(values, self._kind).data)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1."""
        self._file.seek(start * self._kind.itemsize)
        return np.frombuffer(self._file.read((stop - start) * self._kind.itemsize), self._kind)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first row and the values of one block after the other."""
        for start in range(0, self.rows, BLOCK):
            yield start, self.read(start, min(self.rows, start + BLOCK))
