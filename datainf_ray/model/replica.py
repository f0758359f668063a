"""A replica: base and adapter, on one device or on several, giving each example's loss and gradients in a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, RunFailedError, one_line
from datainf_ray.config import ModelConfig
from datainf_ray.influence.block import Block
from datainf_ray.model.blocks import kind_of, name_blocks
from datainf_ray.model.capture import Capture, CaptureError, Consume, unsupported
from datainf_ray.model.objective import Objective, Reduction, Values


class BatchLike(Protocol):
    """What a replica needs of a batch of b examples; see `corpus.batches`."""

    @property
    def values(self) -> Values:
        """What the task's loss takes."""

    def one(self, k: int) -> BatchLike:
        """One example in a batch by itself, with no padding."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Verdict:
    """How a replica takes its losses and gradients, and how that compares with plain autograd on single rows."""

    path: Literal["hooks", "one by one"]
    cosine: float | None  # the smallest over blocks, between a row's gradient in a batch and alone; None: not measured
    reason: str | None  # why not by hooks
    loss: Literal["chunked", "whole"]
    loss_reason: str | None  # why from whole logits


class Replica:
    """A model in eval mode whose adapter's tensors are the blocks.

    `blocks` are in the order of the model's parameters; `path` is "hooks" or "one by one" (see `capture`), and `loss`
    "chunked" or "whole" (see `shortcut`). Both are the quick way unless `reason` or `shortcut.whole` says why not, or
    the task knows no shortcut. A reason is given when the replica is made and may be by `check`; assign one to take the
    plain way on purpose.

    `device` is where batches are expected and where losses and gradients come, wherever a block lies; `devices` has it
    first, and then the others that hold a part of the model. Not given, it is that of the first block.
    """

    def __init__(
        self, model: nn.Module, task: Objective, reduction: Reduction = "mean", device: torch.device | None = None
    ) -> None:
        self.model = model.eval()
        self.task, self.reduction = task, reduction
        self.parameters = name_blocks(model)
        self.blocks = tuple(Block(n, kind_of(model, p), tuple(p.shape)) for n, p in self.parameters.items())
        self.device = next(iter(self.parameters.values())).device if device is None else device
        places = [p.device for p in model.parameters() if not p.is_meta]  # meta: offloaded by accelerate
        self.devices = tuple(dict.fromkeys([self.device, *places]))
        # In float16 small gradients vanish on the way down; a power of two is undone without rounding.
        half = any(p.dtype == torch.float16 for p in model.parameters())
        self.scale = 1024.0 if half else 1.0
        self.reason = unsupported(model, self.parameters)
        self._capture = Capture(model, self.parameters) if self.reason is None else None
        self.shortcut = None if task.shortcut is None else task.shortcut(model, self.parameters, self.device)
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    @property
    def path(self) -> Literal["hooks", "one by one"]:
        return "hooks" if self.reason is None else "one by one"

    @property
    def device_name(self) -> str:
        """What computes, for a person: cpu, NVIDIA H100, 2 × NVIDIA H100."""
        if self.device.type != "cuda":
            return self.device.type
        name = torch.cuda.get_device_name(self.device)
        return name if len(self.devices) == 1 else f"{len(self.devices)} × {name}"

    @property
    def loss(self) -> Literal["chunked", "whole"]:
        return "whole" if self.shortcut is None or self.shortcut.whole is not None else "chunked"

    def losses(self, batch: BatchLike, plain: bool = False) -> Tensor:
        """The b losses of a batch, float32 or wider, on `device`; `plain`: by no shortcut, whatever is known.

        Raises `RunFailedError` where the task gives something else.
        """
        if plain or self.shortcut is None:
            losses = self.task.losses(self.model, batch.values, self.reduction)
        else:
            losses = self.shortcut.losses(batch.values, self.reduction)
        if losses.shape != (len(batch),) or not losses.is_floating_point():
            raise RunFailedError(
                f"model.task: its losses are {tuple(losses.shape)} of {losses.dtype}, not one for each of {len(batch)}"
            )
        return losses.to(self.device, torch.promote_types(losses.dtype, torch.float32))

    def gradients(self, batch: BatchLike, consume: Consume) -> Tensor:
        """The b losses of a batch; on the way, `consume(block, gradients, rows)` gets its gradients, all on `device`.

        By hooks a block comes once, with all b rows; one by one it comes for every row by itself. A block that a row's
        loss does not depend on may not come at all: its gradient is zero.
        """
        b = len(batch)
        if self._capture is None or self.reason is not None:
            return torch.stack([self._alone(batch.one(i), i, consume) for i in range(b)])
        lengths = {x.shape[1] for x in batch.values.values() if x.ndim > 1}
        with self._capture.into(consume, torch.arange(b, device=self.device), self.scale, lengths):
            losses = self.losses(batch)
            (losses.sum() * self.scale).backward()
        return losses.detach()

    def _alone(self, batch: BatchLike, position: int, consume: Consume, plain: bool = False) -> Tensor:
        """One example, by autograd on the blocks themselves: right for any layer, and slow."""
        blocks = list(self.parameters.items())
        for _, parameter in blocks:
            parameter.requires_grad_(True)
        try:
            loss = self.losses(batch, plain)[0]
            gradients = torch.autograd.grad(loss * self.scale, [p for _, p in blocks], allow_unused=True)
        finally:
            for _, parameter in blocks:
                parameter.requires_grad_(False)
        rows = torch.tensor([position], device=self.device)
        for (name, _), gradient in zip(blocks, gradients, strict=True):
            if gradient is not None:
                wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                consume(name, wide.reshape(1, -1).to(self.device) / self.scale, rows)
        return loss.detach()

    def require_finite(self, batch: BatchLike, model: ModelConfig) -> None:
        """Raises `RequestError` where no row of a batch has a finite loss, and a tensor of the model is not finite.

        One that is not does not stop rows that never come by it, such as an unused token's embedding.
        """
        with torch.no_grad():
            if self.losses(batch, plain=True).isfinite().any():
                return
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() and not parameter.is_meta and not parameter.isfinite().all():
                part = "adapter" if any(parameter is p for p in self.parameters.values()) else "base"
                where = name.removeprefix("base_model.model.")
                raise RequestError(f"model.{part}", getattr(model, part), f"no row has a loss: {where} is not finite")

    def check(self, batch: BatchLike | None) -> Verdict:
        """Compare the losses and gradients of a batch with plain autograd on each of its rows alone.

        Where they differ by more than rounding, the replica takes no shortcut to the losses from then on (whole logits,
        with a mask), or if that is not it, one row at a time, or both; and says why. Without a batch nothing is
        compared, and the verdict is what was found when the replica was made.
        """
        quick = self.shortcut is not None and (self.shortcut.whole is None or self.shortcut.unmasked)
        if batch is None or (self.path == "one by one" and not quick):
            return self._verdict(None)
        exact = self._table(batch)
        put = _put_into(exact)
        losses = torch.stack([self._alone(batch.one(i), i, put, plain=True) for i in range(len(batch))])
        cosine, wrong = self._compare(batch, losses, exact)
        if wrong is not None and self.path == "hooks":
            way = self.shortcut
            spared = None if way is None else (way.whole, way.unmasked)
            self._plainly(wrong)
            cosine, still = self._compare(batch, losses, exact)
            if still is None:
                return self._verdict(cosine)
            if way is not None and spared is not None:
                way.whole, way.unmasked = spared
            self.reason = wrong
            cosine, wrong = self._compare(batch, losses, exact)
        if wrong is not None:
            self._plainly(wrong)
        return self._verdict(cosine)

    def _plainly(self, reason: str) -> None:
        """From now on the model's own forward pass, with all of its logits and a mask."""
        if self.shortcut is not None:
            self.shortcut.whole, self.shortcut.unmasked = self.shortcut.whole or reason, False

    def _verdict(self, cosine: float | None) -> Verdict:
        whole = None if self.shortcut is None else self.shortcut.whole
        return Verdict(self.path, cosine, self.reason, self.loss, whole)

    def _table(self, batch: BatchLike) -> dict[str, Tensor]:
        return {b.name: torch.zeros(len(batch), b.size, device=self.device) for b in self.blocks}

    def _compare(self, batch: BatchLike, losses: Tensor, exact: dict[str, Tensor]) -> tuple[float | None, str | None]:
        """The smallest cosine to the exact gradients, and what differs by more than rounding.

        What is wrong differs by its own size, so the bounds are wide: half precision rounds the same sums by some per
        cent.
        """
        got = self._table(batch)
        try:
            found = self.gradients(batch, _put_into(got))
        except CaptureError as error:
            return None, one_line(error)
        single = not any(p.dtype in (torch.float16, torch.bfloat16) for p in self.model.parameters())
        tolerance = 1e-2 if single else 0.5
        # a row that is not finite gets its status in the sweep
        off = ((found - losses).abs() / losses.abs().clamp(min=1))[losses.isfinite()]
        if not bool((off <= tolerance).all()):
            return None, f"the losses of a batch differ from those of its rows alone by {float(off.max()):.1%}"
        cosine = 1.0
        for name, right in exact.items():
            size = right.norm(dim=1).double()
            if not size.isfinite().all() or not (size > 0).any():
                continue  # a row without gradient has no direction
            apart = (got[name] - right).norm(dim=1).double()
            # a row whose gradient is a billionth of its neighbour's is all rounding
            worst = (apart / size.clamp(min=1e-6 * float(size.max()))).max()
            dots = torch.nn.functional.cosine_similarity(got[name].double(), right.double(), dim=1)
            cosine = min(cosine, float(dots[size > 1e-6 * size.max()].min()))
            if not worst <= tolerance:
                return cosine, f"the gradients of {name} differ from autograd's by {float(worst):.1%}"
        return cosine, None


def _put_into(table: dict[str, Tensor]) -> Consume:
    return lambda block, gradients, rows: table[block].index_copy_(0, rows, gradients.to(table[block].dtype))
