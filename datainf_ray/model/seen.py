"""What a model predicts for rows, seen as its output passes by on the way to the loss: there is no second pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RunFailedError
from datainf_ray.model.faults import told
from datainf_ray.model.objective import Predictions

#: Gets what the model predicts for some rows of a batch: b × …, and which rows (b int64), both on the replica's device.
See = Callable[[Tensor, Tensor], None]


@contextmanager
def seen(model: nn.Module, predictions: Predictions | None) -> Iterator[list[Tensor]]:
    """Inside, what `predictions` makes of the model's output is put into the list each time that the model is called.

    Nothing is where that is None. Raises `RunFailedError` where `predictions` raises.
    """
    found: list[Tensor] = []
    if predictions is None:
        yield found
        return

    def after(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        try:
            with torch.no_grad():
                found.append(predictions(output).detach())
        except Exception as error:  # a task of the user's own: anything
            raise RunFailedError(f"model.task: predictions raised {told(error)}") from None

    hook = model.register_forward_hook(after)
    try:
        yield found
    finally:
        hook.remove()


def placing(see: See | None, rows: Tensor) -> Callable[[Tensor], None] | None:
    """Gives `see` what is predicted for these `rows`."""
    return None if see is None else lambda predicted: see(predicted, rows)


def of_rows(found: list[Tensor], rows: int) -> Tensor | None:
    """What is predicted for the rows of a batch, b × …, where the model was called once for them all; else None.

    Raises `RunFailedError` where the task gives something else.
    """
    if len(found) != 1:
        return None
    if found[0].shape[:1] != (rows,):
        raise RunFailedError(f"model.task: its predictions are {tuple(found[0].shape)}, not one for each of {rows}")
    return found[0]
