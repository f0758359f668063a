"""A replica: base and adapter, on one device or on several, giving each example's loss and gradients in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.config import ModelConfig
from datainf_ray.influence.block import Block
from datainf_ray.model.alike import alike_by, forget_lengths, growing
from datainf_ray.model.blocks import kind_of, name_blocks
from datainf_ray.model.capture import Capture, Consume, unsupported
from datainf_ray.model.faults import is_of_rows
from datainf_ray.model.forward import bare_rows, base_of
from datainf_ray.model.mapped import mapped
from datainf_ray.model.objective import Objective, Reduction, Values
from datainf_ray.model.seen import See, of_rows, placing, seen

#: Of gradients: see `capture`, `mapped`, and `Replica.alone`.
Path = Literal["hooks", "vmap", "one by one"]


class BatchLike(Protocol):
    """What a replica needs of a batch of b examples; see `corpus.batches`."""

    @property
    def values(self) -> Values:
        """What the task's loss takes."""

    @property
    def ids(self) -> Sequence[str]:
        """What the b examples are called."""

    @property
    def lengths(self) -> Sequence[Sequence[int]]:
        """How long each example's sequences are, without padding."""

    def one(self, k: int) -> BatchLike:
        """One example in a batch by itself, with no padding."""

    def pick(self, some: Sequence[int]) -> BatchLike:
        """Some of the examples, with no more padding than they need."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Verdict:
    """How a replica takes its losses and gradients, and how that compares with plain autograd on single rows."""

    path: Path
    cosine: float | None  # the smallest over blocks, between a row's gradient in a batch and alone; None: not measured
    reason: str | None  # why not by hooks
    loss: Literal["chunked", "whole"]
    loss_reason: str | None  # why from whole logits
    lengths_reason: str | None = None  # why only rows of the same length share a batch


class Replica:
    """A model in eval mode whose adapter's tensors are the blocks.

    `blocks` are in the order of the model's parameters; `path` is "hooks", "vmap" or "one by one", and `loss`
    "chunked" or "whole" (see `shortcut`). Both are the quick way unless `reason` or `shortcut.whole` says why not, or
    the task knows no shortcut. A reason is given when the replica is made and may be by `check`; assign one to take the
    plain way on purpose. `alike` says which rows may share a batch, and `lengths_reason` why only those of the same
    length do, where it is so.

    `device` is where batches are expected and where losses and gradients come, wherever a block lies; `devices` has it
    first, and then the others that hold a part of the model. Not given, it is that of the first block.
    """

    most_tokens = 0  #: that a pass should have at most, where a replica can take a row in several

    def __init__(
        self, model: nn.Module, task: Objective, reduction: Reduction = "mean", device: torch.device | None = None
    ) -> None:
        self.model = model.eval()
        self.task, self.reduction = task, reduction
        self.parameters = name_blocks(model)
        self.device = next(iter(self.parameters.values())).device if device is None else device
        places = [p.device for p in model.parameters() if not p.is_meta]  # meta: offloaded by accelerate
        self.devices = tuple(dict.fromkeys([self.device, *places]))
        # In float16 small gradients vanish on the way down; a power of two is undone without rounding.
        half = any(p.dtype == torch.float16 for p in model.parameters())
        self.scale = 1024.0 if half else 1.0
        self.blocks: tuple[Block, ...]
        self.reason: str | None
        self._capture: Capture | None
        self._find_blocks(model)
        config = getattr(base_of(model), "config", None)
        self.alike = alike_by(config)
        self.lengths_reason: str | None = None
        self.maps = False  # where `reason` says why not by hooks: whether by vmap, for rows of the same length
        self.growing = growing(model)
        self.shortcut = None if task.shortcut is None else task.shortcut(model, self.parameters, self.device)
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def _find_blocks(self, model: nn.Module) -> None:
        """Set `blocks`, and how their gradients are taken."""
        self.blocks = tuple(Block(n, kind_of(model, p), tuple(p.shape)) for n, p in self.parameters.items())
        self.reason = unsupported(model, self.parameters)
        self._capture = Capture(model, self.parameters) if self.reason is None else None

    @property
    def path(self) -> Path:
        if self.reason is None:
            return "hooks"
        return "vmap" if self.maps else "one by one"

    def least_tokens(self, lengths: Sequence[int]) -> int:
        """How many tokens a pass must have room for, of a row with sequences of these lengths."""
        return sum(lengths)

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

    def losses(self, batch: BatchLike, plain: bool = False, see: Callable[[Tensor], None] | None = None) -> Tensor:
        """The b losses of a batch, float32 or wider, on `device`; `plain`: by no shortcut, whatever is known.

        `see` gets what the model predicts for the rows (b × …, on `device`) where the task says what that is, and the
        model was called once for all of them. Raises `RunFailedError` where the task gives something else.
        """
        forget_lengths(self.growing)
        with seen(self.model, None if see is None else self.task.predictions) as found:
            if plain or self.shortcut is None:
                losses = self.task.losses(self.model, batch.values, self.reduction)
            else:
                losses = self.shortcut.losses(batch.values, self.reduction)
        predicted = of_rows(found, len(batch))
        if predicted is not None and see is not None:
            see(predicted.to(self.device))
        if losses.shape != (len(batch),) or not losses.is_floating_point():
            raise RunFailedError(
                f"model.task: its losses are {tuple(losses.shape)} of {losses.dtype}, not one for each of {len(batch)}"
            )
        return losses.to(self.device, torch.promote_types(losses.dtype, torch.float32))

    def gradients(self, batch: BatchLike, consume: Consume, one_by_one: bool = False, see: See | None = None) -> Tensor:
        """The b losses of a batch; on the way, `consume(block, gradients, rows)` gets its gradients, all on `device`.

        `see(predicted, rows)` gets what the model predicts, of all rows in one call or of some in each, where the task
        says what that is; see `losses`.

        By hooks or vmap a block comes once, with all b rows, or once for each part of the batch whose rows may be
        together; one by one, as may be asked for, it comes for every row by itself. A block that a row's loss does not
        depend on may not come at all: its gradient is zero.
        """
        if one_by_one or self.path == "one by one":
            return torch.stack([self.alone(batch.one(i), i, consume, see=see) for i in range(len(batch))])
        groups = self.alike.groups(batch.lengths)
        if len(groups) == 1:
            return self._together(batch, consume, see)
        losses: dict[int, Tensor] = {}
        for group in groups:
            places = torch.tensor(group, device=self.device)

            def placed(block: str, gradients: Tensor, rows: Tensor, places: Tensor = places) -> None:
                consume(block, gradients, places[rows])

            def told(predicted: Tensor, rows: Tensor, places: Tensor = places) -> None:
                if see is not None:
                    see(predicted, places[rows])

            losses |= zip(group, self._together(batch.pick(group), placed, told), strict=True)
        return torch.stack([losses[i] for i in range(len(batch))])

    def _together(self, batch: BatchLike, consume: Consume, see: See | None) -> Tensor:
        """The gradients of all rows of a batch, which may be together."""
        if self.path == "vmap":
            return self._mapped(batch, consume, see)
        assert self._capture is not None
        lengths = {x.shape[1] for x in batch.values.values() if x.ndim > 1}
        rows = torch.arange(len(batch), device=self.device)
        unpadded = bare_rows() if self.alike.equal else nullcontext()
        with self._capture.into(consume, rows, self.scale, lengths), unpadded:
            losses = self.losses(batch, see=placing(see, rows))
            (losses.sum() * self.scale).backward()
        return losses.detach()

    def _mapped(self, batch: BatchLike, consume: Consume, see: See | None) -> Tensor:
        """The gradients of rows of the same length, by `mapped`."""
        forget_lengths(self.growing)
        task, rows = self.task, torch.arange(len(batch), device=self.device)
        losses, found, predicted = mapped(
            self.model, self.parameters, task.losses, batch.values, self.reduction, self.scale, task.predictions
        )
        if predicted is not None and see is not None:
            see(predicted.to(self.device), rows)
        for name, gradient in found.items():
            consume(name, gradient.to(wide(gradient)).flatten(1).to(self.device), rows)
        return losses.to(self.device, wide(losses))

    def alone(
        self,
        batch: BatchLike,
        position: int,
        consume: Consume,
        plain: bool = False,
        see: See | None = None,
    ) -> Tensor:
        """One bare example, by autograd on the blocks themselves: right for any layer, and slow."""
        blocks, rows = list(self.parameters.items()), torch.tensor([position], device=self.device)
        for _, parameter in blocks:
            parameter.requires_grad_(True)
        try:
            with bare_rows():
                loss = self.losses(batch, plain, placing(see, rows))[0]
            gradients = torch.autograd.grad(loss * self.scale, [p for _, p in blocks], allow_unused=True)
        finally:
            for _, parameter in blocks:
                parameter.requires_grad_(False)
        for (name, _), gradient in zip(blocks, gradients, strict=True):
            if gradient is not None:
                consume(name, gradient.to(wide(gradient)).reshape(1, -1).to(self.device) / self.scale, rows)
        return loss.detach()

    def room(self, rows: int) -> dict[str, Tensor]:
        """Zeros for the gradients of so many rows: rows × d_l a block, in the precision that they come in."""
        wides = {name: wide(parameter) for name, parameter in self.parameters.items()}
        widest = max(wides.values(), key=lambda dtype: dtype.itemsize)
        return {
            b.name: torch.zeros(rows, b.size, device=self.device, dtype=wides.get(b.name, widest)) for b in self.blocks
        }

    def require_finite(self, batch: BatchLike, model: ModelConfig) -> None:
        """Raises `RequestError` where no row of a batch has a finite loss, and a tensor of the model is not finite.

        One that is not does not stop rows that never come by it, such as an unused token's embedding.
        """
        if any(self._is_finite(batch.one(i)) for i in range(len(batch))):
            return
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() and not parameter.is_meta and not parameter.isfinite().all():
                part = "adapter" if any(parameter is p for p in self.parameters.values()) else "base"
                where = name.removeprefix("base_model.model.")
                raise RequestError(f"model.{part}", getattr(model, part), f"no row has a loss: {where} is not finite")

    @torch.no_grad()
    def _is_finite(self, batch: BatchLike) -> bool:
        try:
            with bare_rows():
                return bool(self.losses(batch, plain=True).isfinite().all())
        except Exception as error:
            if not is_of_rows(error):
                raise
            return False

    @property
    def way(self) -> Way:
        """How losses and gradients are taken now; set to another to go that way."""
        way = self.shortcut
        whole, unmasked = (None, False) if way is None else (way.whole, way.unmasked)
        return Way(self.reason, self.lengths_reason, whole, unmasked, self.maps)

    @way.setter
    def way(self, state: Way) -> None:
        self.reason, self.lengths_reason, self.maps = state.reason, state.lengths_reason, state.maps
        self.alike = replace(self.alike, equal=state.lengths_reason is not None)
        if self.shortcut is not None:
            self.shortcut.whole, self.shortcut.unmasked = state.whole, state.unmasked

    def plainly(self, reason: str) -> None:
        """From now on the model's own forward pass, with all of its logits and a mask."""
        if self.shortcut is not None:
            self.shortcut.whole, self.shortcut.unmasked = self.shortcut.whole or reason, False

    def verdict(self, cosine: float | None) -> Verdict:
        whole = None if self.shortcut is None else self.shortcut.whole
        return Verdict(self.path, cosine, self.reason, self.loss, whole, self.lengths_reason)


@dataclass(frozen=True)
class Way:
    """The way that a replica goes: see `Replica`."""

    reason: str | None
    lengths_reason: str | None
    whole: str | None
    unmasked: bool
    maps: bool = False


def wide(tensor: Tensor) -> torch.dtype:
    """The tensor's own dtype, or float32 where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def put_into(table: dict[str, Tensor]) -> Consume:
    return lambda block, gradients, rows: table[block].index_copy_(0, rows, gradients.to(table[block].dtype))
