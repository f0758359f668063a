"""What DataInf is for a case: float64, plain autograd, one bare row at a time, loaded as PEFT does it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from zoo.architectures import CLASSIFIER, SEQ2SEQ
from zoo.cases import Case
from zoo.make import LABELS

_DAMPING = 0.1
_WRAPPERS = ("default", "modules_to_save")  # what PEFT puts into the name of a tensor, and not into its file


class Exact:
    """The gradients of a case's rows and queries, by block; computed in `dtype`, and summed in float64."""

    def __init__(self, case: Case, config: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> None:
        model = _load(case, config["model"]).to(dtype).eval()
        self.train, self.queries = (
            _gradients(model, config[name]["path"], case.model.task) for name in ("train", "queries")
        )

    def influence(self, left_out: Collection[str]) -> np.ndarray[Any, Any]:
        """Rows × queries, as the paper writes it, over all blocks but those of rounding."""
        total = torch.zeros(1, dtype=torch.float64)
        for name, g in self.train.items():
            v, squares = self.queries[name], (g * g).sum(1)
            damping = _DAMPING * squares.mean() / g.shape[1]
            if name in left_out or damping == 0:
                continue
            curvature = ((g @ v.T) / (damping + squares)[:, None]).T @ g / len(g)
            total = total - g @ ((v - curvature) / damping).T
        return total.numpy()


def _load(case: Case, model: Mapping[str, Any]) -> nn.Module:
    labels = {"num_labels": LABELS} if case.model.task == CLASSIFIER else {}
    base = case.model.auto_class().from_pretrained(
        model["base"], dtype=torch.float32, attn_implementation="eager", **labels
    )
    if case.tokens is not None:
        base.resize_token_embeddings(case.tokens, mean_resizing=False)
    with suppress(Exception):  # of models without experts
        base.set_experts_implementation("eager")  # the others multiply no float64
    if model["adapter"] is None:
        return base
    return PeftModel.from_pretrained(base, model["adapter"], is_trainable=True)


def _gradients(model: nn.Module, path: str, task: str) -> dict[str, Tensor]:
    """{block: rows × size}"""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, list[Tensor]] = {name: [] for name in trained}
    for line in Path(path).read_text().splitlines():
        loss = _loss(model, json.loads(line), task)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for (name, parameter), g in zip(trained.items(), gradients, strict=True):
            found[name].append((torch.zeros_like(parameter) if g is None else g).double().flatten())
    return {_block(name): torch.stack(rows) for name, rows in found.items()}


def _loss(model: nn.Module, row: Mapping[str, Any], task: str) -> Tensor:
    """Of one row, called with nothing but its tokens."""
    ids = torch.tensor([row["input_ids"]])
    if task == CLASSIFIER:
        return nn.functional.cross_entropy(model(input_ids=ids).logits, torch.tensor([row["label"]]))
    labels = torch.tensor([row["labels"]])
    if task == SEQ2SEQ:
        return nn.functional.cross_entropy(model(input_ids=ids, labels=labels).logits[0], labels[0])
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)


def _block(name: str) -> str:
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)
