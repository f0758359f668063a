"""Where the lines of a file begin and end, many at a time: as fast as a disk reads, which line by line is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

_BLOCK = 1 << 22
_SPACE = np.zeros(256, bool)
_SPACE[list(b" \t\n\r\x0b\x0c")] = True


@dataclass(frozen=True)
class Region:
    """Whole lines of a file that follow on one another."""

    data: bytes
    starts: np.ndarray  #: in `data`, of every line
    ends: np.ndarray
    is_row: np.ndarray  #: whether each line is a record; blank ones are none


def regions(stream: BinaryIO) -> Iterator[Region]:
    """The lines from where `stream` stands, some megabytes at a time; one that is longer than that is whole, too."""
    rest = b""
    while True:
        block = stream.read(max(_BLOCK, len(rest)))
        data = rest + block if rest else block
        end = data.rfind(b"\n") + 1 if block else len(data)
        if end:
            yield _region(data[:end])
        rest = data[end:]
        if not block:
            return


def _region(data: bytes) -> Region:
    signs = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(signs == 10) + 1
    if not len(ends) or ends[-1] < len(data):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1]])
    is_row = np.ones(len(ends), bool)
    for line in np.flatnonzero(_SPACE[signs[starts]]):
        is_row[line] = not data[starts[line] : ends[line]].isspace()
    return Region(data, starts, ends, is_row)
