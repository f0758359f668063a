"""One loss per example, in its own right: what else is in the batch, and how much padding, does not enter."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def token_losses(logits: Tensor, labels: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """Cross-entropy of each row's target tokens: b × s × V logits and b × s labels (-100: no target) give b losses.

    The logits at a position predict the next token's label. `mean` divides by the row's own number of targets. At least
    float32 whatever the model computes in; a row without a target gets zero.
    """
    logits, labels = logits[:, :-1], labels[:, 1:]
    targets = labels != -100
    chosen = logits[targets]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    each = F.cross_entropy(chosen, labels[targets], reduction="none")
    losses = each.new_zeros(labels.shape).masked_scatter(targets, each).sum(1)
    return losses / targets.sum(1).clamp(min=1) if reduction == "mean" else losses


def class_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's class (b int64 labels); squared error where the model has one output (b floats)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        return (logits[:, 0] - labels.to(logits.dtype)).square()
    return F.cross_entropy(logits, labels, reduction="none")
