"""Which part of a large model lies on which of a worker's GPUs.

The parts follow each other, so a batch passes through the GPUs one after the other: several are for room, not for
speed. A GPU needs room for its weights and, for each of them, for what the forward pass leaves for the backward pass.
So weights are given out in proportion to the room that there is, and then all GPUs are full at the same batch size; of
the first one's room the folds' part, `HELD`, is taken off before.

accelerate's own "balanced_low_0" knows nothing of activations: it would fill the last of two GPUs with weights to the
brim and leave the first empty. Nor does its `infer_auto_device_map` with budgets in that proportion give these places:
it takes a budget for a limit, and what does not go in by whole layers is put off (of a Llama with 80 layers 3, 4 and
6 % on 2, 3 and 8 GPUs; of one with 2 layers half). With half a layer's slack, and no limit for the last GPU, the first
has less than its part, and nothing where the embedding is larger than that. Nothing is ever put off to the host's
memory or to a disk: the backward pass holds every weight that the forward pass has fetched, so it would save nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError

HELD = 0.4  #: of a worker's first GPU, the most that queries and sums may take; see `planning.sizing`

_QUANTIZED = {"8bit": 9 / 8, "4bit": 5 / 8}  # bytes of a weight, with its scales


def place(
    model: nn.Module, free: Sequence[int], dtype: torch.dtype = torch.float32, quantization: str | None = None
) -> dict[str, int]:
    """A device map, {module name: number of a GPU}, of a transformers model for GPUs with `free` bytes each.

    The model may lie on torch's meta device. What it wants whole (its layers) is not split, what comes before the first
    layer is on GPU 0, and a tied module is with the one that it shares its weight with. Raises `RequestError` where the
    weights do not fit, or where the model does not say what must stay whole.
    """
    whole = set(getattr(model, "_no_split_modules", None) or ())
    if not whole:
        raise RequestError(
            "cluster.gpus_per_worker",
            len(free),
            f"{type(model).__name__} does not say which of its parts must stay on one GPU",
            "use 1",
        )
    of_head = getattr(model, "get_output_embeddings", None)
    head = of_head() if of_head else None
    sizes = {id(p): _size(p, dtype, None) for p in model.parameters()}
    for module in model.modules():
        if quantization is not None and isinstance(module, nn.Linear) and module is not head:
            sizes[id(module.weight)] = _size(module.weight, dtype, quantization)
    total = sum(sizes.values())
    rooms = [(1 - HELD) * free[0], *free[1:]]
    if total > sum(rooms):
        rooms = list(free)  # it may do for a few queries; whether any batch fits is tried later
    if total > sum(rooms):
        raise RequestError(
            "cluster.gpus_per_worker",
            len(free),
            f"{total / 2**30:.0f} GiB of weights do not fit into the {sum(free) / 2**30:.0f} GiB that are free",
            "use more GPUs a worker, or model.quantization",
        )
    edges = [total * share / sum(rooms) for share in itertools.accumulate(rooms)]
    begun, done, where = False, 0.0, {}
    lies: dict[int, int] = {}  # where a parameter lies, by its identity
    for name, piece in _pieces(model, whole):
        begun = begun or type(piece).__name__ in whole
        own = [id(p) for p in piece.parameters()]
        tied = next((lies[key] for key in own if key in lies), None)
        size = sum(sizes[key] for key in own if key not in lies)
        middle = done + size / 2
        gpu = next((k for k, edge in enumerate(edges) if middle <= edge), len(free) - 1) if begun else 0
        where[name] = gpu if tied is None else tied
        lies.update((key, where[name]) for key in own if key not in lies)
        done += size
    return where


def _size(parameter: Tensor, dtype: torch.dtype, quantization: str | None) -> float:
    return parameter.numel() * (dtype.itemsize if quantization is None else _QUANTIZED[quantization])


def _pieces(module: nn.Module, whole: set[str], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that are not split, in order: those that want to be whole, and those with tensors of their own."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    children = list(module.named_children())
    if own or not children or type(module).__name__ in whole:
        yield name, module
        return
    for child, inner in children:
        yield from _pieces(inner, whole, f"{name}.{child}" if name else child)
