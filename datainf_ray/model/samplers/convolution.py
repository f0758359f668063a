"""Convolutions along one axis or two: what a window sees, laid out as a row, is what a linear layer is fed."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn.functional import unfold

from datainf_ray.model.samplers.register import Call, computes, samples, wide, wide_product


def _is_plain(layer: nn.Module) -> bool:
    """Whether a convolution has one group, and pads with zeros, the same on both sides; the rest is for `generic`."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d) or not (computes(layer, nn.Conv1d) or computes(layer, nn.Conv2d)):
        return False
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


@samples(_is_plain)
def convolution(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_p = W · window p of x + b: Σ_p g_p ⊗ window p of x, and Σ_p g_p, over all places p."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    x, g = call.inputs[0], gradient.flatten(2)
    found = {}
    if "weight" in names:
        found["weight"] = wide_product(g.mT, _windows(layer, x).mT).reshape(len(x), *layer.weight.shape)
    if "bias" in names:
        found["bias"] = g.sum(2, dtype=wide(g.dtype))
    return found


def _windows(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """b × c · (size of a window) × places."""
    step: tuple[int, ...] = layer.stride
    padding = tuple(int(p) for p in layer.padding)  # no text: `_is_plain`
    if all(k == 1 for k in layer.kernel_size) and not any(padding):
        seen = x[..., :: step[0]] if isinstance(layer, nn.Conv1d) else x[..., :: step[0], :: step[1]]
        return seen.flatten(2)
    if isinstance(layer, nn.Conv2d):
        return unfold(x, layer.kernel_size, layer.dilation, padding, step)
    return unfold(x[:, :, None], (1, *layer.kernel_size), (1, *layer.dilation), (0, *padding), (1, *step))
