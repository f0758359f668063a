"""What is told of one order: its figures, their intervals, and how it goes on behind the first rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

#: What figures are of: one order of all rows (`rows`), the mean over an order for each query (`queries`), or what a
#: random order gives on average (`chance`). An interval is over what is resampled: rows, or queries.
Over = Literal["rows", "queries", "chance"]


@dataclass(frozen=True)
class Line:
    """One line of an evaluation; its figures are in the order of `Evaluation.figures`."""

    name: str
    label: str  #: the name, and what the figures are of where lines differ in that
    run: str | None  #: the URL of the run that the order is of; None: of none
    over: Over
    values: np.ndarray  #: figures
    bounds: np.ndarray | None = None  #: figures × 2; None where nothing was resampled
    each: np.ndarray | None = None  #: queries × figures, of the queries that count
    queries: np.ndarray | None = None  #: the numbers that those queries have, in the run that the order is of
    curve: np.ndarray | None = None  #: share of the true rows that is found, by share of rows looked at; see `SHARES`


#: Of the rows looked at, where `Line.curve` is given.
SHARES = np.linspace(0, 1, 101)
