"""Examples of like length, padded together, within a budget of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datainf_ray.corpus.tokens import Example

_PADDING = 0.1  # of a batch's tokens
_ENOUGH = 1 / 16  # of the budget: smaller batches cost more in calls than padding does

#: What a task makes of the values of b examples, and of the padding token's id: tensors whose first dimension is b.
Collate = Callable[[Sequence[Mapping[str, Any]], int], dict[str, Tensor]]


@dataclass
class Batch:
    """b examples, as the tensors that their task's loss takes."""

    values: dict[str, Tensor]  #: b×... each
    rows: Tensor  #: b int64: which of the chunk's examples these are
    ids: Sequence[str]  #: of the b examples
    lengths: Sequence[Sequence[int]]  #: of each example's sequences, without padding
    pick: Callable[[Sequence[int]], Batch]  #: some of its examples, 0..b-1, with no more padding than they need

    def __len__(self) -> int:
        return len(self.rows)

    def one(self, k: int) -> Batch:
        """One of its examples in a batch by itself: with no padding."""
        return self.pick([k])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.values.items()}
        return Batch(moved, self.rows.to(device), self.ids, self.lengths, lambda some: self.pick(some).to(device))


def make_batch(collate: Collate, examples: Sequence[Example], positions: Sequence[int], pad_id: int) -> Batch:
    """The examples at `positions` as a batch. `examples` are a chunk's; those that are taken have status ok."""
    taken = [examples[position] for position in positions]
    return Batch(
        collate([example.values for example in taken], pad_id),
        torch.tensor(list(positions), dtype=torch.int64),
        [example.id for example in taken],
        [example.lengths for example in taken],
        lambda some: make_batch(collate, examples, [positions[k] for k in some], pad_id),
    )


def plan_batches(lengths: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Positions in `lengths`, batched so that a batch padded to its longest has at most `batch_tokens` tokens.

    An example's lengths are those of its sequences, each of which is padded by itself. Shortest first, equal lengths in
    their own order; an example longer than the budget is a batch of its own. In a small chunk lengths lie far apart: a
    batch that has a sixteenth of the budget ends where another row would make more than a tenth of it padding.
    """
    batches: list[list[int]] = []
    tokens = 0  # in the last batch, without padding
    longest: list[int] = []  # of the last batch's sequences
    totals = [sum(each) for each in lengths]
    for position in sorted(range(len(lengths)), key=lambda i: (totals[i], i)):
        total = totals[position]
        if batches:
            wider = [max(pair) for pair in itertools.zip_longest(longest, lengths[position], fillvalue=0)]
            padded = (len(batches[-1]) + 1) * sum(wider)
            close = padded - tokens - total <= _PADDING * padded or tokens < _ENOUGH * batch_tokens
            if padded <= batch_tokens and close:
                batches[-1].append(position)
                tokens, longest = tokens + total, wider
                continue
        batches.append([position])
        tokens, longest = total, list(lengths[position])
    return batches


def pad(lines: Sequence[Sequence[int]], filler: int) -> Tensor:
    """b lists of integers as b×s int64, filled up on the right to the longest of them."""
    out = torch.full((len(lines), max(map(len, lines))), filler, dtype=torch.int64)
    for row, line in zip(out, lines, strict=True):
        row[: len(line)] = torch.tensor(line, dtype=torch.int64)
    return out


def token_tensors(values: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """The tokens of b examples, all b×s int64.

    `input_ids`; `attention_mask`, 0 where padded; and `token_type_ids` where any of them has some: 0 for the others.
    """
    ids = [value["input_ids"] for value in values]
    tensors = {"input_ids": pad(ids, pad_id), "attention_mask": pad([[1] * len(line) for line in ids], 0)}
    types = [value.get("token_type_ids") for value in values]
    if any(each is not None for each in types):
        tensors["token_type_ids"] = pad([each or [0] * len(line) for each, line in zip(types, ids, strict=True)], 0)
    return tensors
