"""The block: one trainable tensor of the adapter."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

HIDDEN_STATE = "hidden state"  #: the kind of a block that is a row's last hidden state, and no gradient

_DRAW = re.compile(r"t\d+/")  # stands before a tensor's name: t25/NAME


@dataclass(frozen=True)
class Block:
    """One trainable tensor of the adapter, the l of the paper's sums.

    `kind` says which part of the adapter it is: lora_A, lora_B, modules_to_save, lora_magnitude_vector and so on.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def tensor(self) -> str:
        """The tensor's name: that of the block, unless it is one of several draws of the tensor's gradient."""
        return _DRAW.sub("", self.name, count=1) if _DRAW.match(self.name) else self.name

    def at(self, draw: int) -> Block:
        """The block of the tensor's gradient at a draw, such as a timestep, beside those of others."""
        return replace(self, name=f"t{draw}/{self.name}")

    @property
    def size(self) -> int:
        """The number of its entries, d_l."""
        return math.prod(self.shape)
