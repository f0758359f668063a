"""Keeping transformers', PEFT's and diffusers' advice out of our output."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_QUIET, _within, _loud = threading.Lock(), 0, ExitStack()  # what `quiet` shares; _loud puts the settings back


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' and peft's advice and progress bars out of our output; their errors still raise.

    These are settings of the process, and runs may overlap: the first thread within changes them, and the last one to
    leave puts them back.
    """
    global _within
    with _QUIET:
        if _within == 0:
            _loud.enter_context(_silenced())
        _within += 1
    try:
        yield
    finally:
        with _QUIET:
            _within -= 1
            if _within == 0:
                _loud.close()


@contextmanager
def _silenced() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    others = [logging.getLogger(name) for name in ("peft", "diffusers")]
    before = [logger.level for logger in others]
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for logger in others:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # between the libraries: nothing that a user could mend
            yield
    finally:
        transformers_logging.set_verbosity(level)
        for logger, usual in zip(others, before, strict=True):
            logger.setLevel(usual)
        if bars:
            transformers_logging.enable_progress_bar()
