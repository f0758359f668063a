"""Whether the losses and gradients of a batch are those of its rows alone, but for rounding."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

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


def rounding(model: nn.Module, device: torch.device) -> Rounding:
    """The bounds for a model: half precision rounds the same sums by some per cent."""
    halves = [p.dtype for p in model.parameters() if p.dtype in _HALVES]
    if halves:
        return Rounding(0.5, max(torch.finfo(dtype).eps for dtype in halves))
    if device.type == "cuda" and _multiplies_in_tf32(model):
        return Rounding(1e-2, 1e-3)
    return Rounding(1e-4, 1e-6)


def _multiplies_in_tf32(model: nn.Module) -> bool:
    """Whether a GPU rounds float32 inputs to ten bits; for convolutions that is torch's default."""
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in model.modules())
    return torch.backends.cuda.matmul.allow_tf32 or (torch.backends.cudnn.allow_tf32 and convolves)


def lost(came: Collection[str], exact: Mapping[str, Tensor]) -> str | None:
    """What is wrong where a block has a gradient by autograd, and none ever came by hooks; else None.

    Some models use a layer's tensors and never call the layer, as Mamba does with its convolution.
    """
    missing = [name for name, right in exact.items() if name not in came and bool(right.any())]
    return f"no gradient of {missing[0]} comes by hooks: its layer is not called" if missing else None


def apart_losses(got: Tensor, exact: Tensor, bounds: Rounding) -> str | None:
    """What is wrong with the losses, b of each; None where they agree."""
    off = ((got - exact).abs() / exact.abs().clamp(min=1))[exact.isfinite()]  # the others get their status in the sweep
    if bool((off <= bounds.own).all()):
        return None
    return f"the losses of a batch differ from those of its rows alone by {float(off.max()):.1%}"


def apart_gradients(
    got: Mapping[str, Tensor], exact: Mapping[str, Tensor], bounds: Rounding
) -> tuple[float | None, str | None]:
    """The smallest cosine between gradients, {block: b × d_l} of each, and what is wrong; None where they agree.

    The cosine is over those gradients that are large enough to be held to their own size.
    """
    finite = {name: right.isfinite().all(1) for name, right in exact.items()}  # a row that is not is no rounding
    sizes = {name: _rms(right) * finite[name] for name, right in exact.items()}
    largest = max((float(size.nan_to_num(0).max()) for size in sizes.values()), default=0.0)
    cosine, noise = None, bounds.noise * largest
    for name, right in exact.items():
        fine = finite[name]
        size = sizes[name][fine]
        apart = _rms(got[name][fine] - right[fine])
        judged = size * bounds.own > noise
        if bool(judged.any()):
            dots = cosine_similarity(got[name][fine].double(), right[fine].double(), dim=1)[judged]
            cosine = min(1.0 if cosine is None else cosine, float(dots.min()))
        # got and exact may both be 0
        wrong = ~(apart <= torch.clamp(bounds.own * size, min=noise))
        if bool(wrong.any()):
            worst = float((apart / size)[wrong].max())
            return cosine, f"the gradients of {name} differ from autograd's by {_per_cent(worst)}"
    return cosine, None


def _per_cent(share: float) -> str:
    return f"{share:.1%}" if share >= 1e-3 else f"{share:.2g} of their size"


def _rms(x: Tensor) -> Tensor:
    """b × d as b, in float64."""
    return x.double().square().mean(1).sqrt()
