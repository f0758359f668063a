"""Rows for a tiny model, and what a replica captures of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datainf_ray.corpus.batches import Batch, plan_batches
from datainf_ray.corpus.tokens import Example
from datainf_ray.model.replica import Replica
from datainf_ray.tasks.task import Task
from tests import reference, tiny


def rows_for(model: dict[str, Any], folder: Path, count: int = 7) -> list[dict[str, Any]]:
    path = tiny.write_rows(folder / "rows.jsonl", count, 3, labels=3 if "classification" in model["task"] else None)
    return reference.encode(model, str(path))


def examples_of(rows: list[dict[str, Any]]) -> list[Example]:
    """With what `causal-lm` makes of rows of tokens, or where the label is one number what classification makes."""
    named = [
        {"input_ids": row["input_ids"], "target" if isinstance(row["labels"], int) else "labels": row["labels"]}
        for row in rows
    ]
    return [Example(k, str(k), "ok", "", values, (len(values["input_ids"]),)) for k, values in enumerate(named)]


def batch_of(examples: list[Example], positions: Iterable[int], side: str = "right", task: Task | None = None) -> Batch:
    """The examples as their task batches them; or padded on the left, as we never do."""
    task = task or tiny.task("sequence-classification" if "target" in examples[0].values else "causal-lm")
    batch = task.batch(examples, list(positions), 0)
    if side == "left":
        mask = batch.values["attention_mask"]
        short = (1 - mask).sum(1).tolist()
        rolled = {n: x for n, x in batch.values.items() if x.ndim == 2}
        rolled["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # as a task of one's own may give them
        rolled = {n: torch.stack([row.roll(k) for row, k in zip(x, short, strict=True)]) for n, x in rolled.items()}
        batch = replace(batch, values=batch.values | rolled)
    return batch


def captured(
    replica: Replica, examples: list[Example], size: int, side: str = "right", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Tensor]:
    """{block: rows × size} and the losses, from batches of `size` rows."""
    out = {b.name: torch.zeros(len(examples), b.size, dtype=dtype) for b in replica.blocks}
    losses = torch.zeros(len(examples), dtype=dtype)
    order = [k for batch in plan_batches([e.lengths for e in examples], 10**9) for k in batch]
    for start in range(0, len(order), size):
        batch = batch_of(examples, order[start : start + size], side, replica.task)

        def keep(block: str, gradients: Tensor, at: Tensor, rows: Tensor = batch.rows) -> None:
            out[block][rows[at]] = gradients.to(dtype)

        losses[batch.rows] = replica.gradients(batch, keep).to(dtype)
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
