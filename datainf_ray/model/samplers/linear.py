"""Layers that multiply by a matrix."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from datainf_ray.model.samplers.register import Call, computes, runs, samples, tokens, wide, wide_product


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes W x + b and nothing else, whatever class it is."""
    return computes(module, nn.Linear)


@samples(is_plain_linear)
def linear(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = W x_t + b: Σ_t g_t x_tᵀ, and Σ_t g_t."""
    x, g = tokens(call.inputs[0]), tokens(gradient)
    return _found(names, g, x, g)


@samples(lambda module: runs(module, "transformers.pytorch_utils.Conv1D"))
def conv1d(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """GPT-2's linear layer, whose weight lies the other way round, y_t = Wᵀ x_t + b: Σ_t x_t g_tᵀ, and Σ_t g_t."""
    x, g = tokens(call.inputs[0]), tokens(gradient)
    return _found(names, x, g, g)


def _found(names: Collection[str], left: Tensor, right: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Σ_t left_t right_tᵀ for the weight, Σ_t g_t for the bias, as far as they are asked for."""
    found = {}
    if "weight" in names:
        found["weight"] = wide_product(left, right)
    if "bias" in names:
        found["bias"] = g.sum(1, dtype=wide(g.dtype))
    return found
