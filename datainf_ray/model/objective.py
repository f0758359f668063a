"""What this room needs of a task, which it is handed: how the model is made, and its losses. See `tasks.task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.influence.block import Block

Reduction = Literal["mean", "sum"]

#: The tensors of b examples, by name, all on one device; the first dimension of each is b.
Values = Mapping[str, Tensor]
#: The b losses of a batch from the model itself: model, tensors, and whether to take the mean or sum over targets.
Losses = Callable[[nn.Module, Values, Reduction], Tensor]
#: The losses of the tokens of b rows: model, tensors; b × s as `labels` are, zero where a token is no target.
TokenLosses = Callable[[nn.Module, Values], Tensor]
#: What the model predicts for b rows, b × …, of what it returned for them.
Predictions = Callable[[Any], Tensor]
#: {name in the adapter's file: shape}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Draws:
    """At which draws a task takes a row's loss.

    `frozen(model, values)` makes of one row what does not depend on the draw, 1 × … each; rows with the same number in
    the tensor `same` (b int64) have the same. `losses(model, rows, draws,
    reduction)` gives b × n losses of such rows at the draws with these numbers, in float32 or wider.
    """

    numbers: tuple[int, ...]
    paired: bool
    frozen: Callable[[Any, Values], Values]
    losses: Callable[[Any, Values, Sequence[int], Reduction], Tensor]
    same: str

    def __len__(self) -> int:
        return len(self.numbers)

    def blocks(self, blocks: Sequence[Block]) -> tuple[Block, ...]:
        """The blocks of a run, of those of one draw."""
        if not self.paired:
            return tuple(blocks)
        return tuple(block.at(number) for number in self.numbers for block in blocks)

    def of_rows(
        self, model: nn.Module, values: Values, known: Callable[[int, Values], Values] | None = None
    ) -> dict[str, Tensor]:
        """What does not depend on the draw, of b rows: row by row, so that none's bits depend on the others.

        `known(number, row)` gives it in place of `frozen`: it may have it already.
        """
        rest = {name: x for name, x in values.items() if name != self.same}
        found = []
        for k, number in enumerate(values[self.same].tolist()):
            row = {name: x[k : k + 1] for name, x in rest.items()}
            found.append(self.frozen(model, row) if known is None else known(number, row))
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def mean(self, model: nn.Module, values: Values, reduction: Reduction) -> Tensor:
        """The b losses of a batch, each the mean over its draws; one draw after the other."""
        rows = self.of_rows(model, values)
        return torch.cat([self.losses(model, rows, [k], reduction) for k in range(len(self))], 1).mean(1)


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
    def predictions(self) -> Predictions | None:
        """What the model predicts, of its output; None: nothing is known of that."""

    @property
    def inspect(self) -> Callable[[ModelConfig, Options | None], Any] | None:
        """The `ModelFacts` of a model that is no transformers model with a PEFT adapter; None: it is one."""

    @property
    def load(self) -> Callable[[ModelConfig, torch.device, Options | None], nn.Module] | None:
        """Loads such a model; what takes a gradient are its blocks."""

    @property
    def tokenizer(self) -> Callable[[ModelConfig, Options | None], Any] | None:
        """Loads the tokenizer of such a model."""

    @property
    def draws(self) -> Draws | None:
        """At which draws a row's loss is taken; None: it has one loss."""

    @property
    def shortcut(self) -> Callable[[nn.Module, Mapping[str, nn.Parameter], torch.device], Shortcut] | None:
        """Looks at a model (with its blocks, and the device of its batches) for a quicker way to its losses."""
