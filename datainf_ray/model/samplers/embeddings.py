"""Tables that are looked up."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from datainf_ray.model.samplers.generic import generic
from datainf_ray.model.samplers.register import Call, claims, computes, runs, samples, tokens, wide, wide_product


def _is_embedding(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq
    return plain and not module.sparse and computes(module, nn.Embedding)


@samples(_is_embedding)
def embedding(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = row x_t of W: in row v Σ_t g_t over the positions where x_t = v; nothing in the row of `padding_idx`."""
    assert isinstance(layer, nn.Embedding)
    (name,) = names
    ids, g = call.inputs[0].flatten(1), tokens(gradient)
    return {name: _summed_by_id(ids, g.to(wide(g.dtype)), layer.num_embeddings, layer.padding_idx)}


def _summed_by_id(ids: Tensor, g: Tensor, count: int, padding: int | None) -> Tensor:
    """b × count × h: in row v the sum of g, b × t × h, over the positions where `ids` is v; of padding 0."""
    b, h = len(ids), g.shape[-1]
    apart = ids + count * torch.arange(b, device=ids.device)[:, None]  # each example has rows of its own
    # autograd's own sum: unlike `index_add_` and `index_put_` its bits do not depend on the order of threads
    rows = torch.ops.aten.embedding_dense_backward(g, apart, b * count, -1, False).view(b, count, h)
    if padding is not None:
        rows[:, padding] = 0
    return rows


def _is_looked_up(layer: nn.Module) -> bool:
    """Whether PEFT's layer around an embedding looks tokens up and neither scales nor changes them."""
    base = layer.get_base_layer()  # type: ignore[operator]
    return isinstance(base, nn.Module) and _is_embedding(base) and getattr(base, "embed_scale", None) is None


def _is_lora(layer: nn.Module, tensor: str) -> bool:
    if not runs(layer, "peft.tuners.lora.layer.Embedding"):
        return False
    plain = not layer.lora_variant and not any(layer.input_fns) and not any(layer.output_fns)  # type: ignore[arg-type]
    return tensor.startswith("lora_embedding_") and plain and _is_looked_up(layer)


@claims(_is_lora)
def lora(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = row x_t of W + s B A[:, x_t]: s Σ_t g_t A[:, x_t]ᵀ for B, and s Σ_t Bᵀ g_t over x_t = v in A's column v.

    A's gradient is as wide as the vocabulary, and nearly all of it is 0; the sums that follow want it whole.
    """
    found = {}
    ids, g = call.inputs[0].flatten(1), tokens(gradient)
    for name in names:
        part, adapter = name.split(".")
        scale = layer.scaling[adapter]  # type: ignore[index]
        if part == "lora_embedding_B":
            a = layer.get_parameter(f"lora_embedding_A.{adapter}").detach()
            found[name] = scale * wide_product(g, a.T[ids])
        else:
            b = layer.get_parameter(f"lora_embedding_B.{adapter}").detach()
            base = layer.get_base_layer()  # type: ignore[operator]
            pulled = g.to(wide(g.dtype)) @ b.to(wide(g.dtype))
            found[name] = scale * _summed_by_id(ids, pulled, base.num_embeddings, base.padding_idx).mT
    return found


@claims(lambda layer, tensor: runs(layer, "peft.tuners.lora.layer.Embedding") and "magnitude" in tensor)
def dora(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """A magnitude on an embedding: the layer that holds it gives two tensors, the one around it gives one."""
    return generic(layer, call, gradient, names)


def _is_trained_tokens(layer: nn.Module, tensor: str) -> bool:
    named = runs(layer, "peft.tuners.trainable_tokens.layer.TrainableTokensLayer")
    return named and tensor.startswith("trainable_tokens_delta.") and _is_looked_up(layer)


@claims(_is_trained_tokens)
def trained_tokens(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """An embedding whose rows k are other ones: in row k Σ_t g_t over the positions where x_t = k."""
    (name,) = names
    indices = layer.token_indices[name.rpartition(".")[2]]  # type: ignore[index]
    ids, g = call.inputs[0].flatten(1), tokens(gradient)
    wanted = torch.tensor(indices, device=ids.device)
    here = ids[..., None] == wanted  # b × t × k
    padding = layer.get_base_layer().padding_idx  # type: ignore[operator]
    if padding is not None:
        here &= wanted != padding
    return {name: wide_product(here.to(g.dtype), g)}
