"""What is set for the process while libraries load is put back, whichever thread leaves first."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

from transformers.utils import logging as transformers_logging

from datainf_ray.model.quiet import quiet


def test_runs_that_overlap_leave_the_process_as_it_was() -> None:
    before = _settings()
    first, second = quiet(), quiet()
    first.__enter__()
    within = _settings()
    assert within != before
    second.__enter__()
    first.__exit__(None, None, None)
    assert _settings() == within  # the second one is still at it
    second.__exit__(None, None, None)
    assert _settings() == before
    with quiet():
        assert _settings() == within
    assert _settings() == before


def _settings() -> tuple[Any, ...]:
    return (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
        logging.getLogger("peft").level,
        copy.copy(warnings.filters),
    )
