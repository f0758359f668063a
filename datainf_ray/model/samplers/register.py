"""The register of samplers: for each kind of layer one function, which gives every example's gradient of its tensors.

A sampler sees one call of a layer: what was fed in, and the gradient of what came out. It sums over all positions
(tokens) of an example and leaves the examples apart. A new kind of layer is one function in this folder, with
`@samples` above: for tensors of the layer's own. Or with `@claims`: for tensors that lie in a container or a layer
below it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: How a layer is fed b rows of s tokens: "rows", b × …; "flat", (b · s) × …, row by row; "sequence", s × b × ….
Layout = Literal["rows", "flat", "sequence"]


class CaptureError(RuntimeError):
    """A layer was used in a way that hooks cannot follow."""


@dataclass(frozen=True)
class Call:
    """One call of a layer. Its tensors have one row for each of b examples; `layout` says how the layer was fed them.

    A tensor that the layer was fed for all rows together is as it was.
    """

    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    output: Tensor | None = None  # only for a sampler that asks for it
    layout: Layout = "rows"
    returned: Layout = "rows"  # how what it returned holds the rows
    part: int | None = None  # which of the tensors that the layer returned the gradient is of, where it is a tuple


#: (layer, its call, the gradient of its output, names) → {name: b × the tensor's shape, float32 or wider}. `names` are
#: the tensors, as the layer names them, of which gradients are wanted; the result has one entry for each of them.
Sampler = Callable[[nn.Module, Call, Tensor, Collection[str]], dict[str, Tensor]]
Test = Callable[[nn.Module], bool]
Claim = Callable[[nn.Module, str], bool]

_own: list[tuple[Test, Sampler]] = []
_claims: list[tuple[Claim, Sampler]] = []
_reading: set[Sampler] = set()

#: Whether torch (2.8 and later) multiplies halves on a GPU into float32 sums, with no float32 copy of its inputs.
_HALVES_TO_FLOAT = "dtype" in torch.ops.aten.bmm.overloads()


def samples(test: Test) -> Callable[[Sampler], Sampler]:
    """Register the function below as the sampler of the layers that pass `test`; of several, the first one counts."""

    def register(sampler: Sampler) -> Sampler:
        _own.append((test, sampler))
        return sampler

    return register


def claims(test: Claim, *, output: bool = False) -> Callable[[Sampler], Sampler]:
    """Register the function below for the tensors, of a layer or below it, that pass `test(layer, tensor's name)`.

    With `output` it is given what the layer returned, too, which is then kept for the backward pass.
    """

    def register(sampler: Sampler) -> Sampler:
        _claims.append((test, sampler))
        if output:
            _reading.add(sampler)
        return sampler

    return register


def sampler_of(layer: nn.Module) -> Sampler | None:
    """The sampler that is right for a layer's own tensors; None where none is known."""
    return next((sampler for test, sampler in _own if test(layer)), None)


def claimant(layer: nn.Module, tensor: str) -> Sampler | None:
    """The sampler by which a layer claims a tensor that it or a module below it holds; None where it does not."""
    return next((sampler for test, sampler in _claims if test(layer, tensor)), None)


def reads_output(sampler: Sampler) -> bool:
    return sampler in _reading


def computes(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what `kind` does: its class may be another, its forward method may not."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def runs(module: nn.Module, where: str) -> bool:
    """Whether a module's forward method is the one of that name; by its name, as peft and transformers load slowly."""
    forward = type(module).forward
    return f"{forward.__module__}.{forward.__qualname__}" == f"{where}.forward"


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def tokens(x: Tensor) -> Tensor:
    """b × … × d as b × t × d."""
    return x.reshape(len(x), -1, x.shape[-1])


def per_example(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """b × … × shape as b × shape, summed over what is between."""
    return x.reshape(len(x), -1, *shape).sum(1)


def wide_product(g: Tensor, x: Tensor) -> Tensor:
    """Σ_t g_it x_itᵀ for every i, summed in float32 or wider: b × t × o and b × t × d give b × o × d."""
    if _HALVES_TO_FLOAT and g.is_cuda and g.dtype == x.dtype and g.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(g.mT, x, out_dtype=torch.float32)
    dtype = wide(torch.promote_types(g.dtype, x.dtype))
    g, x = g.to(dtype), x.to(dtype)
    if not g.is_cuda and g.shape[2] > x.shape[2]:  # as of lora_B: a CPU is four to eight times as fast the other way
        return torch.bmm(x.mT, g).mT
    return torch.bmm(g.mT, x)
