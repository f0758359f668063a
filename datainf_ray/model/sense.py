"""Signs that base and adapter belong together: the same weights on every worker, and losses as of a trained model."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from datainf_ray.model.faults import is_of_rows

if TYPE_CHECKING:
    from datainf_ray.model.replica import BatchLike, Replica

_WORSE = 1.1  # an adapter that was trained on rows makes their loss smaller; a few rows may be an exception
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class StartLoss:
    """The mean loss of a few rows when a worker starts."""

    rows: int
    adapter: float  #: of base and adapter
    base: float  #: of the base alone

    def doubt(self, chance: float | None) -> str | None:
        """What speaks against the adapter's belonging to this base, in a clause; None where nothing does.

        `chance` is the loss of a model that knows nothing.
        """
        seen = f"on {self.rows} rows the mean loss is {self.adapter:.2f}"
        if self.adapter > _WORSE * self.base:
            return f"{seen}, and without the adapter {self.base:.2f}: was it trained on this base, and with these rows?"
        if chance is not None and self.adapter > _WORSE * chance:
            return f"{seen}, and of a model that guesses {chance:.2f}: was it trained on this base, with these rows?"
        return None


def weights_digest(model: nn.Module) -> str:
    """A digest of a model's weights: their names, shapes and the sums of their bits, taken where they lie.

    Enough to see that two replicas were drawn differently, and quick: nothing is copied to the host. Offloaded weights
    are left out, and so are buffers: angles of positions are computed, and not by every processor to the last bit.
    """
    total = hashlib.sha256()
    for name, tensor in model.named_parameters():
        if not tensor.is_meta:
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sum_of_bits(tensor)}\n".encode())
    return total.hexdigest()


def _sum_of_bits(tensor: Tensor) -> int:
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    if type(plain) is not Tensor and not isinstance(plain, nn.Parameter):  # a library's own kind of tensor
        return 0
    return int(plain.view(_INTEGERS[plain.element_size()]).sum(dtype=torch.int64))


@torch.no_grad()
def start_loss(replica: Replica, batch: BatchLike) -> StartLoss | None:
    """The losses of a batch's rows with the adapter and without; None without a LoRA, or where one is not finite.

    The rows are those of the check, one after the other: a row that ends a process, or a batch that finds no room, must
    not do so here.
    """
    model: Any = replica.model
    config = getattr(model, "peft_config", {}).get("default")
    if config is None or str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return None
    try:
        own = _mean_loss(replica, batch)
        with model.disable_adapter():
            base = _mean_loss(replica, batch)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or is_of_rows(error):  # the sweep will find which rows it is
            return None
        raise
    if not (own.isfinite() and base.isfinite()):
        return None
    return StartLoss(len(batch), float(own), float(base))


def _mean_loss(replica: Replica, batch: BatchLike) -> Tensor:
    rows = [batch.one(i) for i in range(len(batch))]
    losses = [replica.task.losses(replica.model, row.values, "mean").double() for row in rows]
    return torch.cat(losses).mean()


def chance(vocabulary: int, labels: int | None) -> float | None:
    """The loss of a model that gives every class, or every token, the same probability; None of a regression."""
    classes = vocabulary if labels is None else labels
    return math.log(classes) if classes > 1 else None
