"""Loading the large libraries, which is most of what a short run takes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa


@contextmanager
def loading() -> Iterator[None]:
    """For imports: the garbage collector, which would look through every new module again and again, rests.

    It takes a fifth of the time that torch, transformers and peft load in.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()


def load_pandas() -> None:
    """pyarrow loads pandas, if it is installed, when it is first given values: better now than amid a sweep."""
    pa.array([0])
