"""How many rows are looked at token by token."""

from __future__ import annotations

ROWS = 20  #: of a query and direction at most: more than a person reads token by token
PAIRS = 5_000  #: of rows and queries in all, about: each costs what a training row costs in a sweep
OWN_ROWS = 5  #: of the rows of a query that is a group


def rows_per_query(queries: int) -> int:
    """The rows of each direction that are looked at for each of so many queries."""
    return max(1, min(ROWS, PAIRS // (2 * queries)))
