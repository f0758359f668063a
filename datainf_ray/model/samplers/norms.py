"""Norms: layer norms, and all kinds of RMS norms."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm

from datainf_ray.model.samplers.register import Call, computes, per_example, samples, wide


@samples(lambda module: computes(module, nn.LayerNorm))
def normed(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = w ⊙ n(x_t) + b, n the normed input: Σ_t g_t ⊙ n(x_t), and Σ_t g_t."""
    assert isinstance(layer, nn.LayerNorm)
    x, g = call.inputs[0], gradient.to(wide(gradient.dtype))
    shape = tuple(layer.normalized_shape)
    found = {}
    if "weight" in names:
        found["weight"] = per_example(g * layer_norm(x.to(wide(x.dtype)), shape, eps=layer.eps), shape)
    if "bias" in names:
        found["bias"] = per_example(g, shape)
    return found


def _is_scale(module: nn.Module) -> bool:
    """Whether a module is a norm, y = w ⊙ n(x) + c(x), with one weight; tried, since every architecture has its own.

    So are torch's and Llama's RMSNorm, and Gemma's, whose weight is what is added to 1.
    """
    tensors = dict(module.named_parameters())
    takes = list(inspect.signature(type(module).forward).parameters)
    if "norm" not in type(module).__name__.lower() or list(tensors) != ["weight"] or len(takes) != 2:
        return False
    weight = tensors["weight"]
    if weight.ndim != 1 or any(True for _ in module.buffers()):
        return False
    drawn = torch.randn(3, 2, len(weight), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    x, w = drawn.to(weight.device), drawn[0, 0].to(weight.device) + 2
    with torch.no_grad():
        given = functional_call(module, {"weight": w}, (x,))
        rest = functional_call(module, {"weight": torch.zeros_like(w)}, (x,))
        return given.shape == x.shape and torch.allclose(given, rest + w * _scaled(module, x), rtol=1e-4, atol=1e-5)


@samples(_is_scale)
def scale(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = w ⊙ n(x_t) + c(x_t): Σ_t g_t ⊙ n(x_t)."""
    (name,) = names
    dtype = wide(gradient.dtype)
    n = _scaled(layer, call.inputs[0].to(dtype))
    return {name: per_example(gradient.to(dtype) * n, tuple(n.shape[-1:]))}


@torch.no_grad()  # so that hooks on the layer see that this is no forward pass
def _scaled(layer: nn.Module, x: Tensor) -> Tensor:
    """n(x) of a layer w ⊙ n(x) + c(x): half of what weights of 1 and of −1 give apart.

    It is exact where c(x) is 0 or n(x), as with Llama's and Gemma's: then nothing is rounded away.
    """
    weight = layer.get_parameter("weight")
    one = torch.ones_like(weight, dtype=x.dtype, device=x.device)
    return (functional_call(layer, {"weight": one}, (x,)) - functional_call(layer, {"weight": -one}, (x,))) / 2
