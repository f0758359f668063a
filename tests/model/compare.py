"""Rows for a tiny model, and what a replica captures of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datainf_ray.corpus.batches import Batch, collate, plan_batches
from datainf_ray.corpus.tokens import Example
from datainf_ray.model.replica import Replica
from tests import reference, tiny


def rows_for(model: dict[str, Any], folder: Path, count: int = 7) -> list[dict[str, Any]]:
    path = tiny.write_rows(folder / "rows.jsonl", count, 3, labels=3 if "classification" in model["task"] else None)
    return reference.encode(model, str(path))


def examples_of(rows: list[dict[str, Any]]) -> list[Example]:
    return [
        Example(k, str(k), "ok", input_ids=r["input_ids"], target=r["labels"])
        if isinstance(r["labels"], int)
        else Example(k, str(k), "ok", input_ids=r["input_ids"], labels=r["labels"])
        for k, r in enumerate(rows)
    ]


def padded_left(batch: Batch) -> Batch:
    """The same rows with their padding on the left."""
    moved: dict[str, Tensor] = {}
    for name in ("input_ids", "attention_mask", "labels", "token_type_ids"):
        values = getattr(batch, name)
        if values is not None and values.shape == batch.attention_mask.shape:
            rows = zip(values, batch.attention_mask.sum(1).tolist(), strict=True)
            moved[name] = torch.stack([row.roll(len(row) - tokens) for row, tokens in rows])
    positions = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return replace(batch, **moved, position_ids=positions)


def captured(
    replica: Replica, examples: list[Example], size: int, side: str = "right"
) -> tuple[dict[str, Tensor], Tensor]:
    """{block: rows × size} and the losses, from batches of `size` rows."""
    out = {b.name: torch.zeros(len(examples), b.size) for b in replica.blocks}
    losses = torch.zeros(len(examples))
    order = [k for batch in plan_batches([e.tokens for e in examples], 10**9) for k in batch]
    for start in range(0, len(order), size):
        batch = collate(examples, order[start : start + size], 0)
        if side == "left":
            batch = padded_left(batch)

        def keep(block: str, gradients: Tensor, at: Tensor, rows: Tensor = batch.rows) -> None:
            out[block][rows[at]] = gradients.float()

        losses[batch.rows] = replica.gradients(batch, keep).float()
    return out, losses


def relative(got: Tensor, want: Tensor) -> float:
    """The largest error of a row's gradient, relative to that gradient's norm."""
    norm = want.norm(dim=1)
    error = (got.double() - want).norm(dim=1)
    assert (error[norm == 0] == 0).all()
    return float((error[norm > 0] / norm[norm > 0]).max()) if (norm > 0).any() else 0.0


def is_right(
    replica: Replica,
    model: dict[str, Any],
    rows: list[dict[str, Any]],
    side: str = "right",
    sizes: tuple[int, ...] = (3,),
) -> None:
    """Losses and gradients, in batches of all `sizes`, are those of autograd in float64, one row at a time."""
    exact = reference.load(model)
    want = reference.gradients(exact, rows, replica.reduction)
    want_losses = torch.stack([reference.loss(exact, r, replica.reduction) for r in rows]).detach()
    for size in sizes:
        got, losses = captured(replica, examples_of(rows), size, side)
        torch.testing.assert_close(losses.double(), want_losses, rtol=1e-5, atol=0)
        for (name, g), w in zip(got.items(), want.values(), strict=True):
            assert relative(g, w) < 1e-4, (name, size)
