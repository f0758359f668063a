"""Stages of a run beside its sweeps: how many rows are looked at token by token."""

from __future__ import annotations

PICTURE_SWEEP = "pictures"  #: what run.json calls the stage that makes queries' pictures
TOKEN_SWEEPS = ("tokens", "query tokens")  #: what run.json calls the two sweeps
ROWS = 20  #: of a query and direction at most: more than a person reads token by token
PAIRS = 5_000  #: of rows and queries in all, about: each costs what a training row costs in a sweep
OWN_ROWS = 5  #: of the rows of a query that is a group


def listed_rows(queries: int, rows: int, top_k: int, own: int) -> tuple[int, int]:
    """How many rows of the corpus, and of the queries, are looked at at most, each as often as a query asks for it.

    `rows` is the number of the corpus' rows, `top_k` how many are listed, and `own` how many rows the queries have.
    """
    return 2 * queries * min(rows_per_query(queries), rows, top_k), min(own, queries * OWN_ROWS)


def rows_per_query(queries: int) -> int:
    """The rows of each direction that are looked at for each of so many queries."""
    return max(1, min(ROWS, PAIRS // (2 * queries)))
