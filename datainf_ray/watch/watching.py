"""The register of watchers, and the one that fits where we are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from datainf_ray.common.errors import RequestError
from datainf_ray.watch.bars import Bars
from datainf_ray.watch.json_lines import JsonLines
from datainf_ray.watch.lines import Cell, Lines
from datainf_ray.watch.progress import Silent, Watcher


def _fitting() -> Watcher:
    console = Console(stderr=True)
    return Cell() if console.is_jupyter else Bars(console) if console.is_terminal else Lines()


#: How progress can be shown, by the name that `--progress` takes.
WATCHERS: dict[str, Callable[[], Watcher]] = {
    "auto": _fitting,
    "bars": Bars,
    "lines": Lines,
    "json": JsonLines,
    "none": Silent,
}


def known(progress: bool | str) -> str:
    """The watcher's name in `WATCHERS`: True is "auto", False is "none". Raises `RequestError` for any other."""
    name = ("auto" if progress else "none") if isinstance(progress, bool) else progress
    if name not in WATCHERS:
        raise RequestError("progress", name, "there is no such watcher", f"use one of {', '.join(WATCHERS)}")
    return name


@contextmanager
def watching(progress: bool | str = True) -> Iterator[Watcher]:
    """A watcher, closed whatever happens inside. `progress` and errors as with `known`."""
    watcher = WATCHERS[known(progress)]()
    try:
        yield watcher
    finally:
        watcher.close()
