"""Every example's gradient in every block, from one backward pass over the batch.

For a linear layer y = W x the gradient of example i is Σ_t (∂loss/∂y_it) x_itᵀ, so what a hook sees of the layer's
input and of its output's gradient is enough; `samplers` has what other layers need. No weight asks autograd for a
gradient: the base gets none, and the batch's own gradient is never formed. Each block is handed on as soon as the
backward pass has it, and then forgotten.

Hooks are right for layers that have a sampler and whose input has one row per example. `unsupported` says what stands
in the way in a given model, and `Replica.check` compares with autograd on real rows; where either objects, the replica
takes the slow way, one example at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.model.samplers import Sampler, sampler_of

#: Receives a block's name, gradients (k × d_l, float32 or wider) and the k positions in the batch that they belong to.
Consume = Callable[[str, Tensor, Tensor], object]


class CaptureError(RuntimeError):
    """A layer was used in a way that hooks cannot follow."""


@dataclass
class _Site:
    """A hooked layer during one forward and backward pass."""

    sample: Sampler
    blocks: dict[str, str] = field(default_factory=dict)  # of the layer's own tensors that are blocks, by name: which
    calls: int = 0
    arrived: int = 0
    emitted: bool = False
    gradients: dict[str, Tensor] = field(default_factory=dict)  # of those tensors, summed over the calls so far

    def reset(self) -> None:
        self.calls = self.arrived = 0
        self.emitted = False
        self.gradients = {}

    def __str__(self) -> str:
        return next(iter(self.blocks.values()))


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For every parameter (by identity) the modules that hold it, and under which name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    return owners


def unsupported(model: nn.Module, blocks: dict[str, nn.Parameter]) -> str | None:
    """Why hooks cannot capture these blocks, in a few words; None where they can."""
    owners = _owners(model)
    for name, parameter in blocks.items():
        held = owners[id(parameter)]
        if len(held) > 1:
            return f"{name} is shared by {len(held)} modules"
        if sampler_of(held[0][0]) is None:
            return f"{name} belongs to a {type(held[0][0]).__name__}, for which there is no sampler"
    return None


class Capture:
    """Hooks on the layers that hold `blocks` (name: parameter) of `model`. Each must have a sampler."""

    def __init__(self, model: nn.Module, blocks: dict[str, nn.Parameter]) -> None:
        owners = _owners(model)
        self.sites: dict[nn.Module, _Site] = {}
        for name, parameter in blocks.items():
            ((module, tensor),) = owners[id(parameter)]
            if module not in self.sites:
                sampler = sampler_of(module)
                assert sampler is not None, name  # `unsupported` has said so
                self.sites[module] = _Site(sampler)
            self.sites[module].blocks[tensor] = name
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
        site = self.sites[module]
        first = inputs[0]
        if first.ndim < 2 or first.shape[0] != len(self.rows):
            raise CaptureError(f"{site} is fed {tuple(first.shape)}: no row for each of {len(self.rows)} examples")
        site.calls += 1
        if not output.requires_grad:
            output.requires_grad_(True)
        # accelerate moves a layer's input behind this hook's back
        kept = tuple(x.detach().to(output.device) if isinstance(x, Tensor) else x for x in inputs)
        output.register_hook(lambda gradient: self._in_turn(module, kept, gradient))

    def _in_turn(self, module: nn.Module, inputs: tuple[Any, ...], gradient: Tensor) -> None:
        with self._turn:
            self._backward(module, inputs, gradient)

    def _backward(self, module: nn.Module, inputs: tuple[Any, ...], gradient: Tensor) -> None:
        site = self.sites[module]
        for tensor, found in site.sample(module, inputs, gradient.detach(), site.blocks).items():
            site.gradients[tensor] = site.gradients[tensor] + found if tensor in site.gradients else found
        if site.emitted:  # layers called again inside a checkpointed backward pass, for one
            raise CaptureError(f"{site} got more gradient after it seemed complete")
        site.arrived += 1
        if site.arrived == site.calls:
            self._emit(site)

    def _emit(self, site: _Site) -> None:
        assert self.consume is not None
        for tensor, gradient in site.gradients.items():
            flat = gradient.flatten(1).to(self.rows.device)
            self.consume(site.blocks[tensor], flat / self.scale if self.scale != 1 else flat, self.rows)
        site.gradients = {}
        site.emitted = True
