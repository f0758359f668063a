"""DoRA: a linear layer or a convolution whose rows have a magnitude of their own.

lora_A and lora_B have no need of anything here: the norm that the magnitude is divided by counts as a constant, so that
what DoRA calls them with for its sake, a unit matrix, has no gradient.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from datainf_ray.model.samplers.register import Call, claims, runs, wide

_LAYERS = tuple(f"peft.tuners.lora.dora.{name}" for name in ("DoraLinearLayer", "_DoraConvNdLayer"))


def _scales(layer: nn.Module, tensor: str) -> bool:
    """Whether a tensor is the magnitude of a LoRA layer with DoRA, and nowhere 0, as its gradient is divided by it."""
    container, _, rest = tensor.partition(".")
    if container != "lora_magnitude_vector" or not hasattr(layer, "lora_variant"):
        return False
    dora = layer.get_submodule(f"{container}.{rest.rpartition('.')[0]}")
    return any(runs(dora, name) for name in _LAYERS) and bool((layer.get_parameter(tensor) != 0).all())


@claims(_scales, output=True)
def magnitude(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = m ⊙ v(x_t) + b, where v has no m in it: Σ_t g_t ⊙ (y_t − b) / m, or (Σ_t g_t ⊙ y_t − b ⊙ Σ_t g_t) / m."""
    assert call.output is not None
    (name,) = names
    m = layer.get_parameter(name).detach()
    axis = 1 if m.ndim > 1 else -1  # a convolution's channels come first
    dtype = wide(gradient.dtype)
    g, y = gradient.movedim(axis, -1), call.output.movedim(axis, -1)
    found = (g * y).flatten(1, -2).sum(1, dtype=dtype) if g.ndim > 2 else (g * y).to(dtype)
    base = layer.get_base_layer()  # type: ignore[operator]
    if base.bias is not None:
        total = g.flatten(1, -2).sum(1, dtype=dtype) if g.ndim > 2 else g.to(dtype)
        found = found - base.bias.detach() * total
    return {name: (found / m.flatten()).view(-1, *m.shape)}
