"""Save a case as its users would: a base, an adapter, and rows of tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from zoo.architectures import CAUSAL, CLASSIFIER, SEQ2SEQ, WORDS
from zoo.cases import Case

LABELS = 3
TRAIN, QUERIES = 24, 3  # rows
SHORTEST, LONGEST = 3, 26  # tokens of a row
_FIRST_WORD = 4  # ids below are special tokens
_TASKS = {CAUSAL: "CAUSAL_LM", CLASSIFIER: "SEQ_CLS", SEQ2SEQ: "SEQ_2_SEQ_LM"}


def save(case: Case, folder: Path) -> dict[str, Any]:
    """The configuration of a run of a random model with a random adapter; all of its files are in `folder`."""
    torch.manual_seed(7)
    architecture = case.model
    config = architecture.config()
    for key, value in case.settings.items():
        setattr(config, key, value)
    if architecture.task == CLASSIFIER:
        config.num_labels = LABELS
        config.pad_token_id = 1
    base = architecture.auto_class().from_config(config)
    for parameter in base.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)  # transformers' own are so small that little can be told apart
    base.tie_weights()
    base.save_pretrained(folder / "base")
    if case.adapter is not None:  # PEFT knows by where a base is from whether its vocabulary was extended
        base = architecture.auto_class().from_pretrained(folder / "base", dtype=torch.float32)
        _save_adapter(case, base, folder / "adapter")
    for seed, (name, count) in enumerate({"train": TRAIN, "queries": QUERIES}.items()):
        _write_rows(folder / f"{name}.jsonl", architecture.task, count, seed)
    model: dict[str, Any] = {"base": str(folder / "base"), "task": architecture.task, "dtype": "float32"}
    if case.adapter is None:
        model |= {"adapter": None, "blocks": ["*"]}
    else:
        model["adapter"] = str(folder / "adapter")
    return {
        "model": model,
        "train": {"path": str(folder / "train.jsonl"), "id": "name"},
        "queries": {"path": str(folder / "queries.jsonl"), "id": "name"},
        "cluster": {"max_workers": 1, "chunk_rows": 12, "batch_tokens": 120},
        "output": str(folder / "run"),
    }


def _save_adapter(case: Case, base: Any, folder: Path) -> None:
    if case.tokens is not None:
        base.resize_token_embeddings(case.tokens, mean_resizing=False)
    assert case.adapter is not None
    adapter = copy.deepcopy(case.adapter())
    adapter.task_type = _TASKS[case.model.task]
    model = get_peft_model(base, adapter)
    # of these the start is part of what the base is, so they stay near it
    start = getattr(adapter, "init_lora_weights", True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name and "magnitude" not in name and start is True:
            nn.init.normal_(parameter, std=0.2)
        elif parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    if case.saved is not None:
        case.saved(folder)


def _write_rows(path: Path, task: str, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, count: int = 1) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    lines = []
    for k in range(count):
        (length,) = drawn(SHORTEST, LONGEST)
        ids = drawn(_FIRST_WORD, WORDS, length)
        row: dict[str, Any] = {"name": f"row-{k}", "input_ids": ids}
        if task == CLASSIFIER:
            row["label"] = k % LABELS
        elif task == SEQ2SEQ:
            row["labels"] = drawn(_FIRST_WORD, WORDS, *drawn(SHORTEST, LONGEST))
        else:
            (prompt,) = drawn(0, length - 2)
            row["labels"] = [-100] * prompt + ids[prompt:]
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
