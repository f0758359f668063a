"""Which exceptions in a forward or backward pass are one row's affair, and which are not."""

from __future__ import annotations

import torch

from datainf_ray.common.errors import RequestError, RunFailedError, one_line

#: A device without room, a task that gives no losses, a device that does no more after an error of its own.
_WHOLE = (torch.OutOfMemoryError, MemoryError, RequestError, RunFailedError)
_LOST = tuple(kind for kind in [getattr(torch, "AcceleratorError", None)] if kind is not None)  # torch 2.8 and later
_TOLD = ("CUDA error", "can't allocate memory")  # what torch says in a plain RuntimeError


def is_of_rows(error: Exception) -> bool:
    """Whether an exception may come of the rows that were computed, so that others can be."""
    return not isinstance(error, (*_WHOLE, *_LOST)) and not any(said in str(error) for said in _TOLD)


def told(error: Exception) -> str:
    """An exception in one line, with its class, which says more than many a message."""
    name, text = type(error).__name__, one_line(error)
    return name if text == name else f"{name}: {text}"
