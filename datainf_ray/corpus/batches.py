"""Examples of like length, padded together, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from datainf_ray.corpus.tokens import IGNORED, Example

_PADDING = 0.1  # of a batch's tokens
_ENOUGH = 1 / 16  # of the budget: smaller batches cost more in calls than padding does


@dataclass
class Batch:
    """b examples padded to s tokens."""

    input_ids: torch.Tensor  #: b×s int64
    attention_mask: torch.Tensor  #: b×s int64, 0 where padded
    position_ids: torch.Tensor  #: b×s int64, counted over an example's own tokens
    labels: torch.Tensor  #: causal: b×s int64, -100 where no target; classes: b int64; regression: b float32
    token_type_ids: torch.Tensor | None  #: b×s int64
    rows: torch.Tensor  #: b int64: which of the chunk's examples these are

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if t is None else t.to(device) for name, t in moved.items()})


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions in `lengths`, batched so that a batch padded to its longest has at most `batch_tokens` tokens.

    Shortest first, equal lengths in their own order; an example longer than the budget is a batch of its own. In a
    small chunk lengths lie far apart: a batch that has a sixteenth of the budget ends where another row would make more
    than a tenth of it padding.
    """
    batches: list[list[int]] = []
    tokens = 0  # in the last batch, without padding
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[position]
        if batches:
            padded = (len(batches[-1]) + 1) * length
            close = padded - tokens - length <= _PADDING * padded or tokens < _ENOUGH * batch_tokens
            if padded <= batch_tokens and close:
                batches[-1].append(position)
                tokens += length
                continue
        batches.append([position])
        tokens = length
    return batches


def collate(examples: Sequence[Example], positions: Sequence[int], pad_id: int) -> Batch:
    """The examples at `positions`, padded on the right to the longest of them; see `Batch` for the shapes.

    `examples` are a chunk's, and `positions` those of one batch; all of them have status ok.
    """
    chosen = [examples[position] for position in positions]
    longest = max(example.tokens for example in chosen)

    def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        out = torch.full((len(values), longest), filler, dtype=torch.int64)
        for row, line in zip(out, values, strict=True):
            row[: len(line)] = torch.tensor(line, dtype=torch.int64)
        return out

    mask = padded([[1] * example.tokens for example in chosen], 0)
    types = [example.token_type_ids for example in chosen]
    targets = [example.target for example in chosen]
    if targets[0] is None:
        labels = padded([example.labels for example in chosen], IGNORED)
    else:
        labels = torch.tensor(targets, dtype=torch.float32 if isinstance(targets[0], float) else torch.int64)
    return Batch(
        input_ids=padded([example.input_ids for example in chosen], pad_id),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        labels=labels,
        token_type_ids=None if any(t is None for t in types) else padded([t for t in types if t is not None], 0),
        rows=torch.tensor(list(positions), dtype=torch.int64),
    )
