"""Smaller gradients that keep their inner products: a two-sided random projection, the same on every device.

The random numbers come from a counter-based generator (Salmon, Moraes, Dror and Shaw, SC 2011) in integer arithmetic:
what is drawn follows from the seed, the block's name and the position alone, not from a device, an order or a library.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Statistic

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key grows by in each round
_BITS = 128  # that one counter gives


def philox(counters: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10: four random 32-bit words for each of `counters` (n × 4 words) under a key of two words.

    Words are int64 between 0 and 2³² − 1. Equal to Random123's philox4x32.
    """
    a, b, c, d = counters.unbind(1)
    first, second = key
    for _ in range(_ROUNDS):
        high_a, low_a = _product(a, _MULTIPLIERS[0])
        high_c, low_c = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first, second = (first + _WEYL[0]) & _WORD, (second + _WEYL[1]) & _WORD
    return torch.stack([a, b, c, d], 1)


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a 64-bit product; by halves of x, since int64 has no room for it."""
    low = (x & 0xFFFF) * factor
    upper = (x >> 16) * factor + (low >> 16)  # the product without its last 16 bits, below 2^49
    return upper >> 16, (upper & 0xFFFF) << 16 | low & 0xFFFF


def random_signs(
    name: str, rows: int, columns: int, *, which: int, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """A float32 matrix (rows × columns) of fair signs, ±1, that belongs to `name`, `which` (a word) and `seed`.

    Of two with as many columns, the one with fewer rows is the beginning of the other.
    """
    digest = hashlib.sha256(name.encode()).digest()
    key = (seed & _WORD, seed >> 32 & _WORD)
    position = torch.arange(math.ceil(rows * columns / _BITS), device=device)
    label = [torch.full_like(position, int.from_bytes(word, "little")) for word in (digest[:4], digest[4:8])]
    words = philox(torch.stack([position, torch.full_like(position, which), *label], 1), key)
    bits = words[:, :, None] >> torch.arange(32, device=device) & 1
    return (1 - 2 * bits.flatten()[: rows * columns]).view(rows, columns).float()


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """A block's shape as a matrix: the first dimension × the rest; 1 × d for a vector."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def projected_size(block: Block, side: int | None) -> int:
    """d'_l, the number of values that are left of a block's d_l."""
    return math.prod(as_matrix(block.shape) if side is None else (min(n, side) for n in as_matrix(block.shape)))


class Projector:
    """A `Transform`: the gradients of blocks, M (a × b), become P M Qᵀ, with P (side × a) and Q (side × b) of ±1/√side.

    Inner products are kept in expectation over seeds, whatever the shape:

        E ⟨P M Qᵀ, P N Qᵀ⟩ = ⟨M, N⟩

    A dimension of at most `side` is left as it is; `side` None leaves all. With S the symmetric part of NᵀM, the
    variance is 2/side · Σ_{i≠j} S_ij² where only Q projects, at most 2/side · ‖M‖²‖N‖²; where both do it is at most
    (4/side + 4/side²) · ‖M‖²‖N‖². A block's P and Q follow from the seed and its name, not from the other blocks. They
    are made here, once, on `device`: (a + b) · side float32 at most.
    """

    own_norms = False

    def __init__(
        self, blocks: Sequence[Block], side: int | None, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.side, self.seed = side, seed
        self.sizes = {block.name: projected_size(block, side) for block in blocks}
        self._shapes = {block.name: as_matrix(block.shape) for block in blocks}
        self._matrices = {
            name: [self._matrix(name, which, length, device) for which, length in enumerate(shape)]
            for name, shape in self._shapes.items()
        }

    def _matrix(self, name: str, which: int, length: int, device: torch.device | str) -> Tensor | None:
        if self.side is None or length <= self.side:
            return None
        signs = random_signs(name, self.side, length, which=which, seed=self.seed, device=device)
        return signs * (1 / math.sqrt(self.side))  # exact for signs; a division is not the same everywhere

    def size(self, block: str) -> int:
        """d'_l, the number of values in a projected gradient of the block."""
        return self.sizes[block]

    def apply(self, block: str, gradients: Tensor) -> Tensor:
        """The block's gradients (b × d_l) projected: b × d'_l, float32, with the same values where nothing projects."""
        (left, right), (a, b) = self._matrices[block], self._shapes[block]
        out = gradients.float()
        if right is not None:
            out = out.reshape(-1, b) @ right.T
        if left is not None:
            out = left @ out.reshape(len(gradients), a, -1)
        return out.reshape(len(gradients), -1)


def projected(block: Block, queries: Statistic, *, side: int | None, seed: int) -> Statistic:
    """The queries' vectors (`vector`, m × d_l) projected as an index's gradients are: m × d'_l."""
    vector = queries["vector"]
    return {"vector": Projector([block], side, seed, vector.device).apply(block.name, vector)}
