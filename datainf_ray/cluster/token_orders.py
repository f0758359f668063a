"""What the shares of tokens are asked for by: a sweep over some rows, each for a few queries. See `token_shares`."""

from __future__ import annotations

from dataclasses import dataclass

from datainf_ray.cluster.orders import Order, Sweep


@dataclass(frozen=True)
class Pair:
    """A row and a query: along the query's vector the shares of the row's tokens are wanted, times `factor`."""

    row: int  # number in the sweep's corpus
    query: int
    factor: float  # of the row's loss
    direction: str
    rank: int | None = None
    influence: float | None = None  # what the shares come to, where that is known


@dataclass(frozen=True)
class TokenSweep(Sweep):
    """A sweep whose chunks give a table each, with the columns of tokens.parquet; its fold is none of its affair."""

    @property
    def outputs(self) -> int:
        return 1


@dataclass(frozen=True)
class TokenOrder(Order):
    """A chunk, and what is wanted of its rows."""

    pairs: tuple[Pair, ...] = ()
