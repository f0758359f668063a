"""What may stand between a backward pass and a fold: a map of every block's gradients, row by row.

There is none today (the identity) in front of a sweep's fold, and the projection in front of a gradient index. A map of
another kind, as Adam's preconditioner is, is one more class with these two methods.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from datainf_ray.influence.folds import sqnorms_of


class Transform(Protocol):
    """A linear map of a block's gradients."""

    own_norms: bool  #: ‖g‖² is that of what `apply` gives (a preconditioner); else of the gradient (a projection)

    def size(self, block: str) -> int:
        """d'_l: the number of values that a gradient of the block has afterwards."""

    def apply(self, block: str, gradients: Tensor) -> Tensor:
        """The block's gradients (b × d_l) as b × d'_l."""


def transformed(transform: Transform | None, block: str, gradients: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a fold takes of a block's gradients (b × d_l), and their squared norms (b) where those are not its own."""
    if transform is None:
        return gradients, None
    return transform.apply(block, gradients), None if transform.own_norms else sqnorms_of(gradients)
