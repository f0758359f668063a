"""What a worker does with a chunk whose tokens' shares are wanted.

A row's loss is a mean or a sum of its target tokens' losses, so its gradient is one of its tokens' gradients, and

    I(q,k) = − Σ_l r_ql · g_kl = Σ_t share_t,        share_t = − w_k Σ_l r_ql · ∂loss_kt/∂θ_l

with w_k = 1 / (number of targets) for a mean, and 1 for a sum. The slopes in it are those of `model.slopes`. What they
come to is compared with the influence that the scoring sweep gave, which was found by a backward pass.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from datainf_ray.cluster.token_orders import Pair
from datainf_ray.common.errors import one_line
from datainf_ray.corpus.batches import Batch, plan_batches
from datainf_ray.corpus.targets import IGNORED
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Statistic
from datainf_ray.model.faults import is_of_rows, told
from datainf_ray.model.objective import TokenLosses
from datainf_ray.model.replica import Replica
from datainf_ray.model.slopes import Direction, NoSlopesError, backward_slopes, slopes
from datainf_ray.request.seen import pieces
from datainf_ray.runs.schemas import FAILED, OK, tokens_schema

#: How far what the shares come to may be from the influence, as a part of the sum of their sizes: by the precision of
#: what the model computes in, 32 bits and 16.
CLOSE, CLOSE_HALF = 1e-3, 0.1
_NO_ROOM = "the device has no room for the derivatives of its tokens' losses"


@dataclass(frozen=True)
class Found:
    """The shares of one row's tokens for one query, or why there are none."""

    pair: Pair
    shares: Tensor | None
    why: str = ""


class TokenWork:
    """The shares of tokens, by a worker's replica. `vectors` has the queries' (m × d_l) of every block."""

    def __init__(
        self,
        replica: Replica,
        token_losses: TokenLosses,
        make_batch: Callable[[Sequence[Example], Sequence[int]], Batch],
        vectors: Mapping[str, Statistic],
        mean: bool,
    ) -> None:
        self.replica, self.token_losses, self.make_batch = replica, token_losses, make_batch
        self.vectors, self.mean = vectors, mean
        dtypes = {p.dtype for p in replica.model.parameters() if p.is_floating_point()}
        self.close = CLOSE_HALF if dtypes & {torch.float16, torch.bfloat16} else CLOSE

    def table(self, examples: Sequence[Example], pairs: Sequence[Pair], batch_tokens: int, tokenizer: Any) -> pa.Table:
        """The lines of tokens.parquet for these pairs, of which every row is among the examples."""
        place = {example.row: k for k, example in enumerate(examples)}
        of_query: dict[int, list[Pair]] = defaultdict(list)
        for pair in pairs:
            if examples[place[pair.row]].status == OK:
                of_query[pair.query].append(pair)
        found: dict[Pair, Found] = {}
        for query, some in sorted(of_query.items()):
            direction, length = self._direction(query)
            lengths = [examples[place[pair.row]].lengths for pair in some]
            for batch in plan_batches(lengths, batch_tokens):
                chosen = [some[k] for k in batch]
                positions = [place[pair.row] for pair in chosen]
                for one in self._shares(examples, positions, chosen, direction, length):
                    found[one.pair] = one
        lines = [_line(pair, examples[place[pair.row]], found.get(pair), tokenizer) for pair in pairs]
        return pa.Table.from_pylist(lines, schema=tokens_schema())

    def _direction(self, query: int) -> tuple[Direction, float]:
        """A query's vector as one of length 1, which no precision is too narrow for, and its length."""
        parts = {name: statistic["vector"][query] for name, statistic in self.vectors.items()}
        length = float(torch.stack([p.double().norm().cpu() for p in parts.values()]).norm())
        if length == 0:
            return parts, 0.0
        return {name: (part.double() / length).float() for name, part in parts.items()}, length

    def _shares(
        self,
        examples: Sequence[Example],
        positions: Sequence[int],
        pairs: Sequence[Pair],
        direction: Direction,
        length: float,
    ) -> list[Found]:
        """The shares of the tokens of a batch of rows, together if that can be, else one by one."""
        batch = self.make_batch(examples, positions).to(self.replica.device)
        try:
            found = slopes(self.replica, self.token_losses, batch, direction)
        except torch.OutOfMemoryError:
            if self.replica.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(pairs) == 1:
                return [Found(pairs[0], None, _NO_ROOM)]
            middle = len(pairs) // 2
            halves = ((positions[:middle], pairs[:middle]), (positions[middle:], pairs[middle:]))
            return [one for p, q in halves for one in self._shares(examples, p, q, direction, length)]
        except Exception as error:  # of a layer without a rule, or of a row: by itself it shows which
            if not is_of_rows(error):
                raise
            logging.getLogger(__name__).info("slopes are taken by backward passes: %s", one_line(error)[:200])
            found = []
        done = []
        for k, (pair, position) in enumerate(zip(pairs, positions, strict=True)):
            one = None if not found else self._one(pair, examples[position], found[k], length)
            if one is None or one.shares is None:
                one = self._backward(pair, examples[position], batch.one(k), direction, length)
            done.append(one)
        return done

    def _backward(self, pair: Pair, example: Example, batch: Batch, direction: Direction, length: float) -> Found:
        """The shares of a row's tokens from a backward pass for each."""
        try:
            (found,) = backward_slopes(self.replica, self.token_losses, batch, direction)
        except NoSlopesError as error:
            return Found(pair, None, str(error))
        except torch.OutOfMemoryError:
            return Found(pair, None, _NO_ROOM)
        except Exception as error:
            if not is_of_rows(error):
                raise
            return Found(pair, None, told(error))
        return self._one(pair, example, found, length)

    def _one(self, pair: Pair, example: Example, found: Tensor, length: float) -> Found:
        """Shares from slopes; none where they do not come to the influence that is known."""
        labels = example.values["labels"]
        targets = sum(label != IGNORED for label in labels)
        shares = found[: len(labels)] * length * pair.factor / (targets if self.mean else 1)
        total, size = float(shares.sum()), float(shares.abs().sum())
        if not shares.isfinite().all():
            return Found(pair, None, "the derivatives of its tokens' losses are not finite")
        if pair.influence is not None and abs(total - pair.influence) > self.close * max(size, abs(pair.influence)):
            return Found(
                pair, None, f"its tokens' shares come to {total:.4g} and its influence is {pair.influence:.4g}"
            )
        return Found(pair, shares)


def _line(pair: Pair, example: Example, found: Found | None, tokenizer: Any) -> dict[str, Any]:
    line: dict[str, Any] = {
        "query": pair.query,
        "direction": pair.direction,
        "rank": pair.rank,
        "row": example.row,
        "id": example.id,
        "status": example.status,
        "detail": example.detail,
        "influence": None,
        "tokens": None,
        "shares": None,
    }
    if found is None:
        return line
    labels = example.values["labels"]
    ids = example.values["input_ids"] if len(example.lengths) == 1 else [max(label, 0) for label in labels]
    line["tokens"] = pieces(ids, tokenizer)
    if found.shares is None:
        return line | {"status": FAILED, "detail": found.why}
    values = found.shares.tolist()
    shares = [None if label == IGNORED else value for label, value in zip(labels, values, strict=True)]
    return line | {"influence": float(found.shares.sum()), "shares": shares}
