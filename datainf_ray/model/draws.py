"""Rows whose loss is taken at several draws, such as a picture's at several timesteps: a replica over rows × draws.

What of a row does not depend on the draw is computed once, for later sweeps too where it fits. Then the pairs of rows
and draws go through the model together, and the hooks see one example for each pair; here their gradients are sorted
again:

    paired   every draw is a set of blocks of its own, `t25/NAME`: equal draws meet, and a tensor's share a damping
    mean     a block's gradient is the mean over the draws
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from datainf_ray.model.capture import Consume
from datainf_ray.model.objective import Draws, Values
from datainf_ray.model.replica import BatchLike, Path, Replica, wide
from datainf_ray.model.seen import See

KEPT_BYTES = 2**28  #: of what does not depend on the draw, a worker; of Stable Diffusion 1,500 rows


class DrawnReplica(Replica):
    """A replica that gives every row's gradients at the task's draws.

    A pass has as many pairs of rows and draws as come to `most_tokens`, and one draw of each row at least.
    """

    draws: Draws

    def _find_blocks(self, model: nn.Module) -> None:
        super()._find_blocks(model)
        assert self.task.draws is not None
        self.draws = self.task.draws
        self._kept: dict[tuple[int, torch.dtype], Values] = {}
        self._room = KEPT_BYTES
        self._own = {block.name: block for block in self.blocks}
        self.blocks = self.draws.blocks(self.blocks)

    @property
    def path(self) -> Path:
        return "hooks" if self.reason is None else "one by one"

    def least_tokens(self, lengths: Sequence[int]) -> int:
        """One draw's."""
        return max(lengths, default=0)

    def _together(self, batch: BatchLike, consume: Consume, see: See | None) -> Tensor:
        assert self._capture is not None
        frozen = self.draws.of_rows(self.model, batch.values, self._known)
        rows = torch.arange(len(batch), device=self.device)
        summed: dict[str, Tensor] = {}
        found = []
        for some in self._passes(batch):
            pairs = torch.arange(len(batch) * len(some), device=self.device)
            with self._capture.into(self._sorting(some, rows, summed, consume), pairs, self.scale):
                losses = self.draws.losses(self.model, frozen, some, self.reduction)
                (losses.sum() * self.scale).backward()
            found.append(losses.detach())
        self._means(summed, rows, consume)
        losses = torch.cat(found, 1).mean(1)
        return losses.to(self.device, wide(losses))

    def alone(
        self, batch: BatchLike, position: int, consume: Consume, plain: bool = False, see: See | None = None
    ) -> Tensor:
        """One row, draw by draw: see `Replica.alone`."""
        blocks = list(self.parameters.items())
        frozen = self.draws.of_rows(self.model, batch.values)
        rows = torch.tensor([position], device=self.device)
        summed: dict[str, Tensor] = {}
        found = []
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        try:
            for draw in range(len(self.draws)):
                loss = self.draws.losses(self.model, frozen, [draw], self.reduction)[0, 0]
                gradients = torch.autograd.grad(loss * self.scale, [p for _, p in blocks], allow_unused=True)
                put = self._sorting([draw], rows, summed, consume)
                for (name, _), gradient in zip(blocks, gradients, strict=True):
                    if gradient is not None:
                        flat = gradient.to(wide(gradient)).reshape(1, -1).to(self.device) / self.scale
                        put(name, flat, rows)
                found.append(loss.detach())
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
        self._means(summed, rows, consume)
        loss = torch.stack(found).mean()
        return loss.to(self.device, wide(loss))

    def _known(self, number: int, row: Values) -> Values:
        """What of a row does not depend on the draw: kept on the host for the next sweep, while there is room."""
        key = number, next(self.model.parameters()).dtype  # a check may compute in float64 for a moment
        kept = self._kept.get(key)
        if kept is not None:
            return {name: x.to(self.device) for name, x in kept.items()}
        made = self.draws.frozen(self.model, row)
        size = sum(x.numel() * x.element_size() for x in made.values())
        if size <= self._room:
            self._room -= size
            self._kept[key] = {name: x.cpu() for name, x in made.items()}
        return made

    def _passes(self, batch: BatchLike) -> Iterator[list[int]]:
        """The numbers of the draws that go through the model together."""
        pair = len(batch) * max(map(self.least_tokens, batch.lengths))
        at_once = min(max(self.most_tokens // pair, 1), len(self.draws))
        for first in range(0, len(self.draws), at_once):
            yield list(range(first, min(first + at_once, len(self.draws))))

    def _sorting(self, some: Sequence[int], rows: Tensor, summed: dict[str, Tensor], consume: Consume) -> Consume:
        """Takes the gradients of pairs (row by row, its draws `some`): b·n × d_l a block."""

        def sort(block: str, gradients: Tensor, pairs: Tensor) -> None:
            each = gradients.view(len(rows), len(some), -1)
            if self.draws.paired:
                for k, draw in enumerate(some):
                    consume(self._own[block].at(self.draws.numbers[draw]).name, each[:, k].contiguous(), rows)
            elif len(some) == len(self.draws):
                consume(block, each.mean(1), rows)
            else:
                share = each.sum(1) / len(self.draws)
                summed[block] = summed[block] + share if block in summed else share

        return sort

    def _means(self, summed: dict[str, Tensor], rows: Tensor, consume: Consume) -> None:
        for block, gradients in summed.items():
            consume(block, gradients, rows)
