"""The register of samplers: for each kind of layer one function, which gives every example's gradient of its tensors.

A sampler sees one call of a layer: what was fed in, and the gradient of what came out. It sums over all positions
(tokens) of an example and leaves the examples apart. A new kind of layer is one function here, with `@samples` above.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm

#: (layer, its inputs, the gradient of its output, names) → {name: b × the tensor's shape, float32 or wider}. The inputs
#: and the gradient have one row for each of b examples; `names` are the layer's own tensors of which gradients are
#: wanted, and the result has one entry for each of them.
Sampler = Callable[[nn.Module, tuple[Any, ...], Tensor, Collection[str]], dict[str, Tensor]]
Test = Callable[[nn.Module], bool]

_register: list[tuple[Test, Sampler]] = []

#: Whether torch (2.8 and later) multiplies halves on a GPU into float32 sums, with no float32 copy of its inputs.
_HALVES_TO_FLOAT = "dtype" in torch.ops.aten.bmm.overloads()


def samples(test: Test) -> Callable[[Sampler], Sampler]:
    """Register the function below as the sampler of the layers that pass `test`; of several, the first one counts."""

    def register(sampler: Sampler) -> Sampler:
        _register.append((test, sampler))
        return sampler

    return register


def sampler_of(layer: nn.Module) -> Sampler | None:
    """The sampler that is right for a layer; None where none is known."""
    return next((sampler for test, sampler in _register if test(layer)), None)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes W x + b and nothing else, whatever class it is."""
    return _computes(module, nn.Linear)


def _computes(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what `kind` does: its class may be another, its forward method may not."""
    return isinstance(module, kind) and type(module).forward is kind.forward


@samples(is_plain_linear)
def linear(layer: nn.Module, inputs: tuple[Any, ...], gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = W x_t + b: Σ_t g_t x_tᵀ, and Σ_t g_t."""
    x, g = _tokens(inputs[0]), _tokens(gradient)
    found = {}
    if "weight" in names:
        found["weight"] = _wide_product(g, x)
    if "bias" in names:
        found["bias"] = g.sum(1, dtype=_wide(g.dtype))
    return found


def _is_conv1d(module: nn.Module) -> bool:
    """By its names: transformers loads slowly, and this file should not."""
    forward = type(module).forward
    return (forward.__module__, forward.__qualname__) == ("transformers.pytorch_utils", "Conv1D.forward")


@samples(_is_conv1d)
def conv1d(layer: nn.Module, inputs: tuple[Any, ...], gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """GPT-2's linear layer, whose weight lies the other way round, y_t = Wᵀ x_t + b: Σ_t x_t g_tᵀ, and Σ_t g_t."""
    x, g = _tokens(inputs[0]), _tokens(gradient)
    found = {}
    if "weight" in names:
        found["weight"] = _wide_product(x, g)
    if "bias" in names:
        found["bias"] = g.sum(1, dtype=_wide(g.dtype))
    return found


@samples(lambda module: _computes(module, nn.LayerNorm))
def normed(layer: nn.Module, inputs: tuple[Any, ...], gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = w ⊙ n(x_t) + b, n the normed input: Σ_t g_t ⊙ n(x_t), and Σ_t g_t."""
    assert isinstance(layer, nn.LayerNorm)
    x, g = inputs[0], gradient.to(_wide(gradient.dtype))
    shape = tuple(layer.normalized_shape)
    found = {}
    if "weight" in names:
        found["weight"] = _per_example(g * layer_norm(x.to(_wide(x.dtype)), shape, eps=layer.eps), shape)
    if "bias" in names:
        found["bias"] = _per_example(g, shape)
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
def scale(layer: nn.Module, inputs: tuple[Any, ...], gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = w ⊙ n(x_t) + c(x_t): Σ_t g_t ⊙ n(x_t)."""
    (name,) = names
    wide = _wide(gradient.dtype)
    n = _scaled(layer, inputs[0].to(wide))
    return {name: _per_example(gradient.to(wide) * n, tuple(n.shape[-1:]))}


@torch.no_grad()  # so that hooks on the layer see that this is no forward pass
def _scaled(layer: nn.Module, x: Tensor) -> Tensor:
    """n(x) of a layer w ⊙ n(x) + c(x): half of what weights of 1 and of −1 give apart.

    It is exact where c(x) is 0 or n(x), as with Llama's and Gemma's: then nothing is rounded away.
    """
    weight = layer.get_parameter("weight")
    one = torch.ones_like(weight, dtype=x.dtype, device=x.device)
    return (functional_call(layer, {"weight": one}, (x,)) - functional_call(layer, {"weight": -one}, (x,))) / 2


def _is_embedding(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq
    return plain and not module.sparse and _computes(module, nn.Embedding)


@samples(_is_embedding)
def embedding(layer: nn.Module, inputs: tuple[Any, ...], gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = row x_t of W: in row v Σ_t g_t over the positions where x_t = v; nothing in the row of `padding_idx`."""
    assert isinstance(layer, nn.Embedding)
    (name,) = names
    ids, g = inputs[0].flatten(1), _tokens(gradient)
    b, (v, h) = len(ids), layer.weight.shape
    apart = ids + v * torch.arange(b, device=ids.device)[:, None]  # each example has rows of its own
    # autograd's own sum: unlike `index_add_` and `index_put_` its bits do not depend on the order of threads
    rows = torch.ops.aten.embedding_dense_backward(g.to(_wide(g.dtype)), apart, b * v, -1, False).view(b, v, h)
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0
    return {name: rows}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _tokens(x: Tensor) -> Tensor:
    """b × … × d as b × t × d."""
    return x.reshape(len(x), -1, x.shape[-1])


def _per_example(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """b × … × shape as b × shape, summed over what is between."""
    return x.reshape(len(x), -1, *shape).sum(1)


def _wide_product(g: Tensor, x: Tensor) -> Tensor:
    """Σ_t g_it x_itᵀ for every i, summed in float32 or wider: b × t × o and b × t × d give b × o × d."""
    if _HALVES_TO_FLOAT and g.is_cuda and g.dtype == x.dtype and g.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(g.mT, x, out_dtype=torch.float32)
    wide = _wide(torch.promote_types(g.dtype, x.dtype))
    g, x = g.to(wide), x.to(wide)
    if not g.is_cuda and g.shape[2] > x.shape[2]:  # as of lora_B: a CPU is four to eight times as fast the other way
        return torch.bmm(x.mT, g).mT
    return torch.bmm(g.mT, x)
