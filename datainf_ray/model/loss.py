"""One loss per example, in its own right: what else is in the batch, and how much padding, does not enter.

A language model's loss comes in two ways with the same figures. `token_losses` takes the logits of the whole batch,
which for long vocabularies are larger than all else together. `chunked_losses` takes the hidden states before the
output embedding, and never holds more logits than those of one piece of the target tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from datainf_ray.model.objective import Reduction

#: Bytes of one piece's logits in float32. On a CPU more is hardly faster (a piece is still some 60 tokens of a
#: vocabulary of 128,000), and where the vocabulary is short, slower; a GPU wants larger products.
PIECE_BYTES = {"cpu": 2**25, "cuda": 2**28}
_CPU_PIECE, _GPU_PIECE = 64 * 2**20, 256 * 2**20  # of the logits, as they are planned for
#: float16 has no room below: small gradients are held this many times too large until they meet the row's own factor.
_LIFT = 1024.0


def token_losses(logits: Tensor, labels: Tensor, reduction: Reduction, shift: int = 1) -> Tensor:
    """Cross-entropy of each row's target tokens: b × s × V logits and b × s labels (-100: no target) give b losses.

    The logits at a position predict the label `shift` positions later: 1 for the next token, 0 where the model's inputs
    are shifted already. `mean` divides by the row's own number of targets. At least float32 whatever the model computes
    in; a row without a target gets zero.
    """
    logits, labels = logits[:, : logits.shape[1] - shift], labels[:, shift:]
    targets = labels != -100
    chosen = logits[targets]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    return _by_row(F.cross_entropy(chosen, labels[targets], reduction="none"), targets, reduction)


def each_token(logits: Tensor, labels: Tensor, shift: int = 1) -> Tensor:
    """The losses of the tokens: b × s, where `labels` has them; zero where there is no target. See `token_losses`."""
    targets = labels != -100
    targets[:, :shift] = False
    rows, places = targets.nonzero(as_tuple=True)
    chosen = logits[rows, places - shift]
    losses = F.cross_entropy(
        chosen.to(torch.promote_types(chosen.dtype, torch.float32)), labels[targets], reduction="none"
    )
    return losses.new_zeros(labels.shape).masked_scatter(targets, losses)


def chunked_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    reduction: Reduction,
    piece: int | None = None,
    shift: int = 1,
) -> Tensor:
    """`token_losses` of the logits W h + c, from b × s × h hidden states and the frozen W (V × h) and c (V).

    Holds the logits of `piece` target tokens at a time (default: as many as `PIECE_BYTES` allow), and for the backward
    pass h numbers per target token. Costs what the plain way costs: one product with W forward, one for the gradient;
    other tokens cost nothing.
    """
    targets = labels[:, shift:] != -100
    rows, columns = targets.nonzero(as_tuple=True)
    flat = hidden.to(weight.dtype).flatten(0, 1)
    if piece is None:
        wide = torch.promote_types(weight.dtype, torch.float32).itemsize
        piece = max(1, PIECE_BYTES.get(hidden.device.type, PIECE_BYTES["cuda"]) // (wide * len(weight)))
    wanted = torch.is_grad_enabled() and hidden.requires_grad
    chosen = labels[:, shift:][targets]
    each = _Chunked.apply(flat, rows * labels.shape[1] + columns, chosen, weight, bias, piece, wanted)
    return _by_row(each, targets, reduction)


def _by_row(each: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    losses = each.new_zeros(targets.shape).masked_scatter(targets, each).sum(1)
    return losses / targets.sum(1).clamp(min=1) if reduction == "mean" else losses


class _Chunked(torch.autograd.Function):
    """T losses −log softmax(W h_t + c)[label_t] of the tokens at `positions`, and on the way their gradients

        ∂loss_t/∂h_t = (softmax(W h_t + c) − onehot(label_t)) W

    so that nothing as wide as the vocabulary outlives its piece. W and c get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        positions: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        piece: int,
        wanted: bool,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        ctx.shape, ctx.lift = hidden.shape, _LIFT if hidden.dtype == torch.float16 else 1.0
        losses = hidden.new_empty(len(positions), dtype=wide)
        gradients = hidden.new_empty(len(positions) if wanted else 0, hidden.shape[1])
        # Two buffers for all pieces: fresh memory for each would cost a CPU a fifth of the time.
        room = min(piece, len(positions)), len(weight)
        logits, chances = hidden.new_empty(room), hidden.new_empty(room, dtype=wide)
        for first in range(0, len(positions), piece):
            part = slice(first, min(first + piece, len(positions)))
            size, label = part.stop - first, labels[part, None]
            z = torch.mm(hidden[positions[part]], weight.T, out=logits[:size])
            if bias is not None:
                z += bias
            p = torch.log_softmax(z, 1, dtype=wide, out=chances[:size])
            losses[part] = p.gather(1, label).squeeze(1).neg()
            if wanted:
                p.exp_().scatter_add_(1, label, p.new_full((size, 1), -1.0))
                if ctx.lift != 1:
                    p *= ctx.lift
                torch.mm(p if z.dtype == wide else z.copy_(p), weight, out=gradients[part])
        ctx.save_for_backward(gradients, positions)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients, positions = ctx.saved_tensors
        each = gradients * (incoming / ctx.lift)[:, None]  # in float32: the factors of a half are not halves
        out = gradients.new_zeros(ctx.shape).index_copy_(0, positions, each.to(gradients.dtype))
        return out, None, None, None, None, None, None


def class_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's class (b int64 labels); squared error where the model has one output (b floats)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        return (logits[:, 0] - labels.to(logits.dtype)).square()
    return F.cross_entropy(logits, labels, reduction="none")


def logits_bytes(tokens: float, vocabulary: int, on_gpu: bool) -> float:
    """What a batch's logits take in memory, piece by piece, each with its softmax and its gradient."""
    return 3 * min(_GPU_PIECE if on_gpu else _CPU_PIECE, 4 * tokens * vocabulary)
