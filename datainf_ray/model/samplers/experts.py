"""LoRA on a mixture's fused experts: transformers 5 holds all experts' weights in tensors of three axes.

PEFT wraps the module that holds them, once for each tensor that has LoRA (`target_parameters`), and adds to the tensor
while the module runs. So the outermost wrapper stands for all of them. What an expert computes is read from what
transformers' `use_experts_implementation` says of the module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.model.samplers.generic import generic
from datainf_ray.model.samplers.register import Call, CaptureError, claims, runs, wide

_WRAPPER = "peft.tuners.lora.layer.ParamWrapper"


def _is_fused(layer: nn.Module, tensor: str) -> bool:
    if not runs(layer, _WRAPPER) or not tensor.endswith(".weight"):
        return False
    wraps = list(_wrappers(layer))
    experts: Any = wraps[-1][1].base_layer
    said = all(hasattr(experts, name) for name in ("has_gate", "has_bias", "is_transposed", "down_proj"))
    known = {"gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj", "down_proj"}
    plain = said and not getattr(experts, "has_post_expert_norm", False)
    return plain and all(wrap.num_experts > 1 and wrap.parameter_name in known for _, wrap in wraps)


def _wrappers(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The wrappers of one module, from the outermost, each with what its tensors' names begin with there."""
    while runs(layer, _WRAPPER):
        yield prefix, layer
        prefix, layer = f"{prefix}base_layer.", layer.base_layer


@claims(_is_fused)
def experts(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = Σ_e p_te D_e f(U_e x_t) over the experts e that t is sent to: one line for each such pair (t, e).

    With W_e + s B_e A_e for a weight that is fed u and whose output has the gradient h: dA_e = s Σ B_eᵀh uᵀ and
    dB_e = s Σ h (A_e u)ᵀ, the sums over the pairs of one example. Those are sorted by example and expert, so that each
    sum is over consecutive lines.
    """
    if call.layout != "flat" or len(call.inputs) + len(call.keywords) != 3:
        raise CaptureError("experts are fed something else than tokens, the experts they are sent to, and weights")
    wraps = {wrap.parameter_name: (prefix, wrap) for prefix, wrap in _wrappers(layer)}
    held: Any = next(iter(wraps.values()))[1].get_base_layer()
    x, index, share = (*call.inputs, *call.keywords.values())
    dtype = wide(gradient.dtype)
    pairs = _Pairs(index, len(held.down_proj))
    fed, g = x.flatten(0, 1)[pairs.token].to(dtype), gradient.flatten(0, 1)[pairs.token].to(dtype)
    g = g * share.reshape(-1, 1)[pairs.order].to(dtype)
    up = "gate_up_proj" if held.has_gate else "up_proj"

    def weight(name: str) -> Tensor:
        """E × out × in, LoRA added."""
        found: Tensor = getattr(held, name).detach()
        if name in wraps:
            (adapter,) = wraps[name][1].lora_A
            found = found + wraps[name][1].get_delta_weight(adapter).detach()
        return (found.mT if held.is_transposed else found).to(dtype)

    z = pairs.times(weight(up).mT, fed)
    if held.has_bias:
        z = z + getattr(held, f"{up}_bias").detach().to(dtype)[pairs.expert]
    with torch.enable_grad():
        z.requires_grad_(True)
        inner = held._apply_gate(z) if held.has_gate else held.act_fn(z)
        (gz,) = torch.autograd.grad(inner, z, pairs.times(weight("down_proj"), g))
    found: dict[str, Tensor] = {}
    for name, (u, h) in {up: (fed, gz), "down_proj": (inner.detach(), g)}.items():
        if name in wraps:
            prefix, wrap = wraps[name]
            found |= dict(_factors(wrap, prefix, pairs, u, h, names))
    return found


@claims(lambda layer, tensor: runs(layer, _WRAPPER))
def wrapped(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """LoRA on a tensor of any other module, as a router's; its lora_A and lora_B are layers that nobody calls."""
    return generic(layer, call, gradient, names)


class _Pairs:
    """The pairs of a token and an expert that it is sent to, sorted by example, and there by expert."""

    def __init__(self, index: Tensor, count: int) -> None:
        b, s, k = index.shape
        self.shape = b, count
        example = torch.arange(b, device=index.device).repeat_interleave(s * k)
        group, self.order = torch.sort(example * count + index.flatten(), stable=True)
        self.token, self.expert = self.order // k, group % count
        self.group = group
        self.ends = torch.cumsum(torch.bincount(group, minlength=b * count), 0).tolist()
        by_expert, self._by_expert = torch.sort(self.expert, stable=True)
        self._back = torch.argsort(self._by_expert)
        self._sizes = torch.bincount(by_expert, minlength=count).tolist()

    def times(self, weights: Tensor, x: Tensor) -> Tensor:
        """Every pair's row of x times its expert's matrix, E × in × out."""
        parts = x[self._by_expert].split(self._sizes)
        return torch.cat([part @ w for part, w in zip(parts, weights, strict=True)])[self._back]

    def sums(self, left: Tensor, right: Tensor) -> Tensor:
        """b × E × l × r: over an example's pairs with an expert the sum of the products of left and right."""
        b, count = self.shape
        out = left.new_zeros(b * count, left.shape[1], right.shape[1])
        begin = 0
        for k, end in enumerate(self.ends):
            if end > begin:
                torch.mm(left[begin:end].T, right[begin:end], out=out[k])
            begin = end
        return out.view(b, count, *out.shape[1:])


def _factors(
    wrap: Any, prefix: str, pairs: _Pairs, u: Tensor, h: Tensor, names: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The gradients of lora_A, b × (E · r) × in, and of lora_B, b × out × (r · E), in PEFT's order of both.

    A weight that lies E × in × out has A on the side of its second axis, as PEFT sees it.
    """
    (adapter,) = wrap.lora_A
    a, c, scale = wrap.lora_A[adapter].weight.detach(), wrap.lora_B[adapter].weight.detach(), wrap.scaling[adapter]
    b, count = pairs.shape
    a3 = a.reshape(count, -1, a.shape[-1]).to(u.dtype)  # E × r × in
    c3 = c.reshape(len(c), -1, count).permute(2, 0, 1).to(u.dtype)  # E × out × r
    if f"{prefix}lora_A.{adapter}.weight" in names:
        found = pairs.sums(pairs.times(c3, h), u)  # b × E × r × in
        yield f"{prefix}lora_A.{adapter}.weight", scale * found.reshape(b, *a.shape)
    if f"{prefix}lora_B.{adapter}.weight" in names:
        found = pairs.sums(h, pairs.times(a3.mT, u))  # b × E × out × r
        yield f"{prefix}lora_B.{adapter}.weight", scale * found.permute(0, 2, 3, 1).reshape(b, *c.shape)
