"""How the command ends where its process cannot go on. A user's program has no such way: an exception may reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ways: list[Callable[[str], None]] = []


@contextmanager
def leaving_by(way: Callable[[str], None]) -> Iterator[None]:
    """Inside, this process is a command's, and `way` ends it. It is called in any thread, with the last line."""
    _ways.append(way)
    try:
        yield
    finally:
        _ways.remove(way)


def leaves() -> bool:
    """Whether this process is a command's."""
    return bool(_ways)


def leave(line: str) -> None:
    """End the process with this line, if it is a command's; else return."""
    for way in _ways:
        way(line)
