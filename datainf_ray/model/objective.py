"""What this room needs of a task, which it is handed: how the model is made, and its losses. See `tasks.task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from datainf_ray.config import ModelConfig

Reduction = Literal["mean", "sum"]

#: The tensors of b examples, by name, all on one device; the first dimension of each is b.
Values = Mapping[str, Tensor]
#: The b losses of a batch from the model itself: model, tensors, and whether to take the mean or sum over targets.
Losses = Callable[[nn.Module, Values, Reduction], Tensor]
#: The losses of the tokens of b rows: model, tensors; b × s as `labels` are, zero where a token is no target.
TokenLosses = Callable[[nn.Module, Values], Tensor]
#: {name in the adapter's file: shape}
Shapes = Mapping[str, tuple[int, ...]]


class Shortcut(Protocol):
    """A quicker way to the same losses. It may be spoken out of it, where a comparison shows that it is wrong."""

    whole: str | None  #: why logits are formed for whole batches; None where they are not
    unmasked: bool  #: whether batches padded on the right go without a mask

    def losses(self, values: Values, reduction: Reduction) -> Tensor: ...


class Objective(Protocol):
    """A task, as far as a model is concerned."""

    @property
    def model_class(self) -> Callable[[], Any]:
        """The class with `from_config` and `from_pretrained` that bases are made with."""

    @property
    def configure(self) -> Callable[[Shapes], dict[str, Any]]:
        """Settings of the base's configuration that follow from the adapter's tensors."""

    @property
    def facts(self) -> Callable[[ModelConfig, Any], dict[str, Any]]:
        """What the task must know of the model, from its transformers configuration, in plain values."""

    @property
    def complete(self) -> Callable[[ModelConfig, nn.Module, Callable[[], Any]], None]:
        """Sets what a base that was just loaded lacks; the last of its arguments loads the model's tokenizer."""

    @property
    def losses(self) -> Losses: ...

    @property
    def shortcut(self) -> Callable[[nn.Module, Mapping[str, nn.Parameter], torch.device], Shortcut] | None:
        """Looks at a model (with its blocks, and the device of its batches) for a quicker way to its losses."""
