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


@contextmanager
def watching(progress: bool | str = True) -> Iterator[Watcher]:
    """A watcher, closed whatever happens inside. True is "auto", False is "none".

    Raises `RequestError` for a name that `WATCHERS` does not have.
    """
    name = ("auto" if progress else "none") if isinstance(progress, bool) else progress
    if name not in WATCHERS:
        raise RequestError(f"progress: {name!r}: use one of {', '.join(WATCHERS)}")
    watcher = WATCHERS[name]()
    try:
        yield watcher
    finally:
        watcher.close()
