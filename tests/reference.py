"""What is right, found another way: float64, one example at a time, plain autograd, the paper's sums as loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

KINDS = {
    "causal-lm": AutoModelForCausalLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
}


def load(model: dict[str, Any], dtype: torch.dtype = torch.float64) -> PeftModel:
    base = KINDS[model["task"]].from_pretrained(model["base"], dtype=dtype, attn_implementation="eager")
    return PeftModel.from_pretrained(base, model["adapter"], is_trainable=True).to(dtype).eval()


def encode(model: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The rows' tokens and targets, by the tokenizer itself; a completion is closed with EOS."""
    tokenizer = AutoTokenizer.from_pretrained(model["base"])
    out = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "label" in row:
            out.append({"input_ids": tokenizer(row["text"])["input_ids"], "labels": row["label"]})
        elif model["task"] == "seq2seq-lm":
            target = tokenizer(text_target=row["completion"])["input_ids"] + [tokenizer.eos_token_id]
            out.append({"input_ids": tokenizer(row["prompt"])["input_ids"], "labels": target})
        else:
            prompt = tokenizer(row["prompt"])["input_ids"]
            answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            out.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return out


def loss(model: PeftModel, row: dict[str, Any], reduction: str = "mean") -> Tensor:
    """The loss of one row alone, from the logits, in the model's own precision."""
    seq2seq = model.config.is_encoder_decoder
    labels = {"labels": torch.tensor([row["labels"]])} if seq2seq else {}  # which the model shifts for its decoder
    logits = model(input_ids=torch.tensor([row["input_ids"]]), **labels).logits[0]
    if isinstance(row["labels"], int):
        return -torch.log_softmax(logits, -1)[row["labels"]]
    total, count = torch.zeros((), dtype=logits.dtype), 0
    for t, target in enumerate(row["labels"][0 if seq2seq else 1 :]):
        if target != -100:
            total = total - torch.log_softmax(logits[t], -1)[target]
            count += 1
    return total / count if reduction == "mean" else total


def gradients(model: PeftModel, rows: list[dict[str, Any]], reduction: str = "mean") -> dict[str, Tensor]:
    """{parameter name: rows × size}, one backward pass per row."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    out: dict[str, list[Tensor]] = {n: [] for n, _ in named}
    for row in rows:
        found = torch.autograd.grad(loss(model, row, reduction), [p for _, p in named], allow_unused=True)
        for (n, p), g in zip(named, found, strict=True):
            out[n].append(torch.zeros_like(p).flatten() if g is None else g.flatten())
    return {n: torch.stack(g) for n, g in out.items()}


def datainf(g: dict[str, Tensor], v: dict[str, Tensor], c: float = 0.1) -> Tensor:
    """rows × queries, as the paper writes it: example by example, query by query, block by block."""
    n, m = len(next(iter(g.values()))), len(next(iter(v.values())))
    scores = torch.zeros(n, m, dtype=torch.float64)
    for name, block in g.items():
        if not block.any():
            continue  # no row has a gradient there
        lam = c * sum(float(x @ x) for x in block) / (n * block.shape[1])
        for q in range(m):
            h = torch.zeros_like(block[0])
            for x in block:
                h += (v[name][q] @ x) / (lam + x @ x) * x / n
            r = (v[name][q] - h) / lam
            for k in range(n):
                scores[k, q] -= r @ block[k]
    return scores


def exact(g: dict[str, Tensor], v: dict[str, Tensor], c: float = 0.1, on: dict[str, Tensor] | None = None) -> Tensor:
    """rows × queries, by the inverse of every block's damped matrix; the influence of the rows `on`, else of `g`."""
    scores = torch.zeros((), dtype=torch.float64)
    for name, block in g.items():
        if block.any():
            rows = block if on is None else on[name]
            scores = scores - rows @ damped(block, c).inverse() @ v[name].T
    return scores


def damped(block: Tensor, c: float = 0.1) -> Tensor:
    """(1/n) Σ g gᵀ + λ I, row by row."""
    matrix = c * sum(float(x @ x) for x in block) / (len(block) * block.shape[1]) * torch.eye(block.shape[1]).double()
    for x in block:
        matrix += torch.outer(x, x) / len(block)
    return matrix


def lissa(g: dict[str, Tensor], v: dict[str, Tensor], steps: int, scale: float, c: float = 0.1) -> Tensor:
    """rows × queries: the recursion as it is written."""
    scores = torch.zeros((), dtype=torch.float64)
    for name, block in g.items():
        if block.any():
            r = v[name].T
            for _ in range(steps):
                r = v[name].T + r - damped(block, c) @ r / scale
            scores = scores - block @ r / scale
    return scores


def self_influence(g: dict[str, Tensor], method: str, c: float = 0.1) -> Tensor:
    """Of every row on itself, by the formulas: DataInf's over all pairs of rows."""
    n = len(next(iter(g.values())))
    found = torch.zeros(n, dtype=torch.float64)
    for block in g.values():
        if not block.any():
            continue
        lam = c * sum(float(x @ x) for x in block) / (n * block.shape[1])
        inverse = damped(block, c).inverse() if method == "exact" else None
        for k, x in enumerate(block):
            if method == "hessian-free":
                found[k] -= x @ x
            elif inverse is not None:
                found[k] -= x @ inverse @ x
            else:
                total = sum(float(y @ x) ** 2 / (lam + float(y @ y)) for y in block) / n
                found[k] -= (x @ x - total) / lam
    return found


def hessian_free(g: dict[str, Tensor], v: dict[str, Tensor]) -> Tensor:
    return -sum(g[name] @ v[name].T for name in g)


def cosine(g: dict[str, Tensor], v: dict[str, Tensor]) -> Tensor:
    """rows × queries: minus the cosine of the two gradients, all blocks of each laid end to end, pair by pair."""
    rows = [torch.cat(parts) for parts in zip(*g.values(), strict=True)]
    queries = [torch.cat(parts) for parts in zip(*v.values(), strict=True)]
    scores = torch.zeros(len(rows), len(queries), dtype=torch.float64)
    for k, row in enumerate(rows):
        for q, query in enumerate(queries):
            lengths = float(row.norm() * query.norm())
            scores[k, q] = -float(row @ query) / lengths if lengths else 0.0
    return scores


def worst(got: Tensor, want: Tensor) -> float:
    """The largest relative error of a column, in the Euclidean norm."""
    got, want = torch.as_tensor(got).double(), want.double()
    return float(((got - want).norm(dim=0) / want.norm(dim=0)).max())
