"""Slopes of tokens' losses along a direction: against one backward pass a token, row by row, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datainf_ray.model.objective import TokenLosses
from datainf_ray.model.replica import Replica
from datainf_ray.model.slopes import backward_slopes, slopes
from tests import reference, tiny
from tests.model.compare import batch_of, examples_of, rows_for


def along(model: dict[str, Any], rows: list[dict[str, Any]], direction: dict[str, Tensor]) -> list[Tensor]:
    """The slope of every label of every row, by a backward pass each."""
    peft = reference.load(model)
    shift = 0 if model["task"] == "seq2seq-lm" else 1
    named = {n.replace(".default", ""): p for n, p in peft.named_parameters() if p.requires_grad}
    vectors = [next(v for key, v in direction.items() if name.endswith(key)).double() for name in named]
    found = []
    for row in rows:
        labels = {} if shift else {"labels": torch.tensor([row["labels"]])}
        chances = peft(input_ids=torch.tensor([row["input_ids"]]), **labels).logits[0].log_softmax(-1)
        out = torch.zeros(len(row["labels"]), dtype=torch.float64)
        for t, label in enumerate(row["labels"]):
            if t >= shift and label != -100:
                loss = -chances[t - shift, label]
                gradients = torch.autograd.grad(loss, [*named.values()], retain_graph=True, allow_unused=True)
                out[t] = sum(float(g.flatten() @ v) for g, v in zip(gradients, vectors, strict=True) if g is not None)
        found.append(out)
    return found


def direction_of(replica: Replica) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {b.name: torch.randn(b.size, generator=generator) for b in replica.blocks}


@pytest.mark.parametrize(
    ("arch", "targets"), [("llama", "all-linear"), ("gpt2", None), ("t5", None), ("bart", "all-linear")]
)
def test_one_forward_pass_gives_what_a_backward_pass_a_token_gives(
    tmp_path: Path, arch: str, targets: str | None
) -> None:
    model = tiny.save_model(tmp_path, arch, targets)
    rows = rows_for(model, tmp_path, 3)
    rows[0]["labels"] = [-100 if k % 3 == 1 else label for k, label in enumerate(rows[0]["labels"])]
    task = tiny.task(model["task"])
    replica = tiny.replica(model)
    assert task.token_losses is not None
    direction = direction_of(replica)
    want = along(model, rows, direction)
    batch = batch_of(examples_of(rows), range(len(rows)), task=task)
    for found in (
        slopes(replica, task.token_losses, batch, direction),
        each(replica, task.token_losses, batch, direction),
    ):
        for got, right, row in zip(found, want, rows, strict=True):
            got = got[: len(row["labels"])]
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
    assert all(not p.requires_grad for p in replica.model.parameters())
    if replica.shortcut is not None and replica.shortcut.whole is None:
        quick = slopes(replica, task.token_losses, batch, direction)
        replica.shortcut.whole = "for comparison"
        for one, other in zip(quick, slopes(replica, task.token_losses, batch, direction), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def each(replica: Replica, token_losses: TokenLosses, batch: Any, direction: dict[str, Tensor]) -> list[Tensor]:
    return [backward_slopes(replica, token_losses, batch.one(k), direction)[0] for k in range(len(batch))]
