"""Every example's gradient in every block, from one backward pass over the batch.

For a linear layer y = W x the gradient of example i is Σ_t (∂loss/∂y_it) x_itᵀ, so what a hook sees of the layer's
input and of its output's gradient is enough. No weight asks autograd for a gradient: the base gets none, and the
batch's own gradient is never formed. Each block is handed on as soon as the backward pass has it, and then forgotten.

Hooks are right for plain linear layers whose input has one row per example. `unsupported` says what stands in the way
in a given model, and `Replica.check` compares with autograd on real rows; where either objects, the replica takes the
slow way, one example at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Receives a block's name, gradients (k × d_l, float32 or wider) and the k positions in the batch that they belong to.
Consume = Callable[[str, Tensor, Tensor], object]


#: Whether torch (2.8 and later) multiplies halves on a GPU into float32 sums, with no float32 copy of its inputs.
_HALVES_TO_FLOAT = "dtype" in torch.ops.aten.bmm.overloads()


class CaptureError(RuntimeError):
    """A layer was used in a way that hooks cannot follow."""


@dataclass
class _Site:
    """A hooked layer during one forward and backward pass."""

    weight: str | None  # block names; None where the tensor is not trainable
    bias: str | None
    calls: int = 0
    arrived: int = 0
    emitted: bool = False
    weight_gradient: Tensor | None = None
    bias_gradient: Tensor | None = None

    def reset(self) -> None:
        self.calls = self.arrived = 0
        self.emitted = False
        self.weight_gradient = self.bias_gradient = None


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For every parameter (by identity) the modules that hold it, and under which name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    return owners


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes W x + b and nothing else, whatever class it is."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def unsupported(model: nn.Module, blocks: dict[str, nn.Parameter]) -> str | None:
    """Why hooks cannot capture these blocks, in a few words; None where they can."""
    owners = _owners(model)
    for name, parameter in blocks.items():
        held = owners[id(parameter)]
        if len(held) > 1:
            return f"{name} is shared by {len(held)} modules"
        if not is_plain_linear(held[0][0]):
            return f"{name} belongs to a {type(held[0][0]).__name__}, not to a plain linear layer"
    return None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _wide_product(g: Tensor, x: Tensor) -> Tensor:
    """Σ_t g_it x_itᵀ for every i, summed in float32 or wider: b × t × o and b × t × d give b × o × d."""
    if _HALVES_TO_FLOAT and g.is_cuda and g.dtype == x.dtype and g.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(g.mT, x, out_dtype=torch.float32)
    wide = _wide(torch.promote_types(g.dtype, x.dtype))
    g, x = g.to(wide), x.to(wide)
    if not g.is_cuda and g.shape[2] > x.shape[2]:  # as of lora_B: a CPU is four to eight times as fast the other way
        return torch.bmm(x.mT, g).mT
    return torch.bmm(g.mT, x)


class Capture:
    """Hooks on the linear layers that hold `blocks` (name: parameter) of `model`."""

    def __init__(self, model: nn.Module, blocks: dict[str, nn.Parameter]) -> None:
        owners = _owners(model)
        self.sites: dict[nn.Module, _Site] = {}
        for name, parameter in blocks.items():
            ((module, role),) = owners[id(parameter)]
            site = self.sites.setdefault(module, _Site(None, None))
            setattr(site, role, name)
        self.rows = torch.empty(0, dtype=torch.int64)
        self.scale = 1.0
        self.consume: Consume | None = None
        self._turn = threading.Lock()  # where layers lie on several GPUs, each GPU's backward pass has its own thread
        for module in self.sites:
            module.register_forward_hook(self._forward)

    @contextmanager
    def into(self, consume: Consume, rows: Tensor, scale: float = 1.0) -> Iterator[None]:
        """Hand the gradients of the forward and backward pass inside to `consume`, divided by `scale`.

        `rows` are the positions 0 to b − 1 of the batch's examples. Gradients come where `rows` is: a layer on another
        device sends its own over.
        """
        self.consume, self.rows, self.scale = consume, rows, scale
        try:
            yield
            for site in self.sites.values():
                if site.arrived and not site.emitted:  # the output of another call of this layer did not reach the loss
                    self._emit(site)
        finally:
            self.consume = None
            for site in self.sites.values():
                site.reset()

    def _forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.consume is None or not torch.is_grad_enabled():
            return
        site, x = self.sites[module], inputs[0].detach()
        if x.ndim < 2 or x.shape[0] != len(self.rows):
            raise CaptureError(
                f"{site.weight or site.bias} is fed {tuple(x.shape)}: no row for each of {len(self.rows)} examples"
            )
        site.calls += 1
        if not output.requires_grad:
            output.requires_grad_(True)
        x = x.to(output.device)  # accelerate moves a layer's input behind this hook's back
        output.register_hook(lambda gradient: self._in_turn(site, x, gradient))

    def _in_turn(self, site: _Site, x: Tensor, gradient: Tensor) -> None:
        with self._turn:
            self._backward(site, x, gradient)

    def _backward(self, site: _Site, x: Tensor, gradient: Tensor) -> None:
        g = gradient.detach().reshape(len(x), -1, gradient.shape[-1])
        if site.weight is not None:
            product = _wide_product(g, x.reshape(len(x), -1, x.shape[-1]))
            site.weight_gradient = product if site.weight_gradient is None else site.weight_gradient + product
        if site.bias is not None:
            summed = g.sum(1, dtype=_wide(g.dtype))
            site.bias_gradient = summed if site.bias_gradient is None else site.bias_gradient + summed
        if site.emitted:  # layers called again inside a checkpointed backward pass, for one
            raise CaptureError(f"{site.weight or site.bias} got more gradient after it seemed complete")
        site.arrived += 1
        if site.arrived == site.calls:
            self._emit(site)

    def _emit(self, site: _Site) -> None:
        assert self.consume is not None
        for name, gradient in ((site.weight, site.weight_gradient), (site.bias, site.bias_gradient)):
            if name is not None and gradient is not None:
                flat = gradient.flatten(1).to(self.rows.device)
                self.consume(name, flat / self.scale if self.scale != 1 else flat, self.rows)
        site.weight_gradient = site.bias_gradient = None
        site.emitted = True
