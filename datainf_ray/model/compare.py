"""Whether the losses and gradients of a batch are those of its rows alone, but for rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

_HALVES = (torch.float16, torch.bfloat16)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Rounding:
    """How far apart two right computations of the same gradient may be.

    `own` is relative to the gradient's own norm. It says nothing of a gradient that is zero but for rounding, as that
    of a key's bias under softmax: its terms are as large as other blocks' and cancel, so that what is left is about the
    dtype's rounding of those. So a difference is also borne where it is at most `noise` times the largest gradient of
    the comparison, by the root mean square over a block's values. Blocks of that size are all noise, and no block that
    is seen to matter can be wrong by much: one that is a thousand times smaller than the largest is still held to a
    thousandth of itself in float32.
    """

    own: float
    noise: float


_FLOAT32 = Rounding(1e-4, 1e-6)
_COARSE = Rounding(1e-2, 1e-3)  # deep float32 models, and TF32
_DOUBLED = 5 * 10**8  # parameters of a model that may take twice its memory more for a moment: 4 GB


@dataclass(frozen=True)
class Taken:
    """Losses (b) and gradients {block: b × d_l} of a batch; `came` has the blocks of which any came."""

    losses: Tensor
    gradients: Mapping[str, Tensor]
    came: frozenset[str]


def rounding(model: nn.Module, device: torch.device) -> Rounding:
    """The bounds for a model: half precision rounds the same sums by some per cent."""
    halves = [p.dtype for p in model.parameters() if p.dtype in _HALVES]
    if halves:
        return Rounding(0.5, max(torch.finfo(dtype).eps for dtype in halves))
    return _COARSE if device.type == "cuda" and _multiplies_in_tf32(model) else _FLOAT32


def is_doubtful(model: nn.Module, got: Taken, exact: Taken, bounds: Rounding) -> bool:
    """Whether a difference may still be rounding: many layers of float32 make more of it, at most a per cent."""
    return bounds is _FLOAT32 and difference(got, exact, _COARSE)[1] is None


@contextmanager
def in_double(model: nn.Module) -> Iterator[bool]:
    """Inside, the model has the same values in float64, where rounding is no excuse. Gives False for a large model."""
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.dtype == torch.float32]
    if sum(t.numel() for t in tensors) > _DOUBLED or any(t.is_meta for t in tensors):
        yield False
        return
    held = [(t, t.data) for t in tensors]
    try:
        for t, values in held:
            t.data = values.double()
        yield True
    finally:
        for t, values in held:
            t.data = values


def _multiplies_in_tf32(model: nn.Module) -> bool:
    """Whether a GPU rounds float32 inputs to ten bits; for convolutions that is torch's default."""
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in model.modules())
    return torch.backends.cuda.matmul.allow_tf32 or (torch.backends.cudnn.allow_tf32 and convolves)


def difference(got: Taken, exact: Taken, bounds: Rounding) -> tuple[float | None, str | None]:
    """The smallest cosine between gradients, and what is wrong; None where they agree.

    The cosine is over those gradients that are large enough to be held to their own size.
    """
    wrong = _apart_losses(got.losses, exact.losses, bounds) or _lost(got, exact)
    return (None, wrong) if wrong else _apart_gradients(got.gradients, exact.gradients, bounds)


def _lost(got: Taken, exact: Taken) -> str | None:
    """Some models use a layer's tensors and never call the layer, as Mamba does with its convolution."""
    missing = [n for n, right in exact.gradients.items() if n not in got.came and bool(right.any())]
    return f"no gradient of {missing[0]} comes by hooks: its layer is not called" if missing else None


def _apart_losses(got: Tensor, exact: Tensor, bounds: Rounding) -> str | None:
    off = ((got - exact).abs() / exact.abs().clamp(min=1))[exact.isfinite()]  # the others get their status in the sweep
    if bool((off <= bounds.own).all()):
        return None
    return f"the losses of a batch differ from those of its rows alone by {_share(float(off.max()))}"


def _apart_gradients(
    got: Mapping[str, Tensor], exact: Mapping[str, Tensor], bounds: Rounding
) -> tuple[float | None, str | None]:
    finite = {name: right.isfinite().all(1) for name, right in exact.items()}  # a row that is not is no rounding
    sizes = {name: _rms(right[finite[name]]) for name, right in exact.items()}
    largest = max((float(size.max()) for size in sizes.values() if len(size)), default=0.0)
    cosine, noise = None, bounds.noise * largest
    for name, size in sizes.items():
        right, found = exact[name][finite[name]], got[name][finite[name]]
        judged = size * bounds.own > noise
        if bool(judged.any()):
            dots = cosine_similarity(found[judged].double(), right[judged].double(), dim=1)
            cosine = min(1.0 if cosine is None else cosine, float(dots.min()))
        apart = _rms(found - right)
        wrong = ~(apart <= torch.clamp(bounds.own * size, min=noise))
        if bool(wrong.any()):
            worst = float((apart / size)[wrong].max())
            return cosine, f"the gradients of {name} differ from autograd's by {_share(worst)}"
    return cosine, None


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 1e-3 else f"{share:.1g} of their size"


def _rms(x: Tensor) -> Tensor:
    """b × d as b, in float64."""
    return x.double().square().mean(1).sqrt()
