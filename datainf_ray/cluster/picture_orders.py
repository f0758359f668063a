"""What pictures of queries' prompts are asked for by: a sweep over the rows that have none yet. See `picture_sweep`."""

from __future__ import annotations

from dataclasses import dataclass

from datainf_ray.cluster.orders import Order, Sweep


@dataclass(frozen=True)
class PictureSweep(Sweep):
    """A sweep whose chunks give a table each: `row`, and `detail`, which is null where there is a picture."""

    @property
    def outputs(self) -> int:
        return 1


@dataclass(frozen=True)
class PictureOrder(Order):
    """A chunk, of whose rows pictures are made."""


def mark(fingerprint: str, row: int) -> str:
    """What a picture says of whose it is: the run's fingerprint, and the number of the query's row."""
    return f"{fingerprint} {row}"
