"""The block: one trainable tensor of the adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """One trainable tensor of the adapter, the l of the paper's sums.

    `kind` says which part of the adapter it is: lora_A, lora_B, modules_to_save, lora_magnitude_vector and so on.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its entries, d_l."""
        return math.prod(self.shape)
