"""The sampler for layers that no formula is known for: the layer's own forward pass, under `torch.func`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from datainf_ray.model.samplers.register import Call, CaptureError, wide

_HALVES = (torch.bfloat16, torch.float16)
_looped: WeakSet[nn.Module] = WeakSet()  # layers that torch.func cannot follow


def generic(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y = f(W, x): for every example alone ∂⟨g_i, f(W, x_i)⟩/∂W, the layer run once more, for all examples at once.

    Where `torch.func` cannot follow a layer, as in control flow that depends on data, it is run for one example after
    the other. It is right for a layer that treats each example by itself. Raises `CaptureError` where it cannot be seen
    that it does.
    """
    b = len(gradient)
    weights = {name: layer.get_parameter(name).detach() for name in names}
    others: dict[str, Tensor] = {}
    fed = [*call.inputs, *call.keywords.values()]
    if any(weight.dtype in _HALVES for weight in weights.values()):  # sums over tokens are wide, so all is
        others = dict(layer.named_parameters()) | dict(layer.named_buffers())
        others = {name: _widened(tensor.detach()) for name, tensor in others.items()}
        weights = {name: others.pop(name) for name in names}
        fed, gradient = [_widened(x) for x in fed], _widened(gradient)
    apart = [isinstance(x, Tensor) and x.ndim > 0 and len(x) == b for x in fed]
    for x, own in zip(fed, apart, strict=True):
        if isinstance(x, Tensor) and not own and x.ndim > 0 and len(x) != 1:
            raise CaptureError(f"a {type(layer).__name__} is fed {tuple(x.shape)}: no row for each of {b} examples")

    def run(given: dict[str, Tensor], parts: Sequence[Tensor]) -> Tensor:
        """The layer's output for one example."""
        rows = iter(parts)
        whole = [_alone(next(rows), call.layout) if own else x for x, own in zip(fed, apart, strict=True)]
        count = len(call.inputs)
        keywords = dict(zip(call.keywords, whole[count:], strict=True))
        out = functional_call(layer, others | given, tuple(whole[:count]), keywords)
        out = out if call.part is None else out[call.part]
        assert isinstance(out, Tensor)
        return out

    def one(g: Tensor, *parts: Tensor) -> dict[str, Tensor]:
        out, pull, *_ = vjp(lambda given: run(given, parts), weights)
        found: dict[str, Tensor] = pull(_alone(g, call.returned).to(out.dtype))[0]
        return found

    rows = [x for x, own in zip(fed, apart, strict=True) if own]
    found: dict[str, Tensor] | None = None
    if layer not in _looped:
        try:
            found = vmap(one)(gradient, *rows)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # no common type: whatever a layer does that torch.func has no rule for
            _looped.add(layer)
    if found is None:
        found = _one_by_one(run, weights, gradient, rows, call.returned)
    return {name: g.to(wide(g.dtype)) for name, g in found.items()}


def _one_by_one(
    run: Callable[[dict[str, Tensor], Sequence[Tensor]], Tensor],
    weights: dict[str, Tensor],
    gradient: Tensor,
    rows: Sequence[Tensor],
    returned: str,
) -> dict[str, Tensor]:
    """The same by plain autograd, which can do whatever the model itself can."""
    with torch.enable_grad():
        leaves = {name: weight.clone().requires_grad_(True) for name, weight in weights.items()}
        found = []
        for i, g in enumerate(gradient):
            out = run(leaves, [x[i] for x in rows])
            pulled = torch.autograd.grad(
                out, list(leaves.values()), _alone(g, returned).to(out.dtype), allow_unused=True, materialize_grads=True
            )
            found.append(dict(zip(leaves, pulled, strict=True)))
    return {name: torch.stack([example[name] for example in found]) for name in leaves}


def _alone(x: Tensor, layout: str) -> Tensor:
    """One example's part of a tensor as a batch of one, as the layer is fed batches."""
    return x[None] if layout == "rows" else x[:, None] if layout == "sequence" else x


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in _HALVES else x


def refused(layer: nn.Module) -> str | None:
    """Why a layer may not be run again, in a few words; None where it may."""
    if isinstance(layer, nn.Embedding):
        if layer.max_norm is not None:
            return "an Embedding that changes its rows as it reads them"
        if layer.scale_grad_by_freq:
            return "an Embedding whose gradient depends on the batch's counts"
        if layer.sparse:
            return "an Embedding with sparse gradients"
    return None
