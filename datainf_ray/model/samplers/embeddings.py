"""Tables that are looked up."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from datainf_ray.model.samplers.register import Call, computes, samples, tokens, wide


def _is_embedding(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq
    return plain and not module.sparse and computes(module, nn.Embedding)


@samples(_is_embedding)
def embedding(layer: nn.Module, call: Call, gradient: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """y_t = row x_t of W: in row v Σ_t g_t over the positions where x_t = v; nothing in the row of `padding_idx`."""
    assert isinstance(layer, nn.Embedding)
    (name,) = names
    ids, g = call.inputs[0].flatten(1), tokens(gradient)
    b, (v, h) = len(ids), layer.weight.shape
    apart = ids + v * torch.arange(b, device=ids.device)[:, None]  # each example has rows of its own
    # autograd's own sum: unlike `index_add_` and `index_put_` its bits do not depend on the order of threads
    rows = torch.ops.aten.embedding_dense_backward(g.to(wide(g.dtype)), apart, b * v, -1, False).view(b, v, h)
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0
    return {name: rows}
