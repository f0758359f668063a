"""An evaluation as a table for people and one for programs, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datainf_ray.common.words import counted, percent, printable
from datainf_ray.evaluation.draw import draw
from datainf_ray.evaluation.figures import CONFIDENCE
from datainf_ray.evaluation.lines import Line
from datainf_ray.evaluation.rankings import Side

_LOOKED_AT = {
    "harmful": "harmful influences first",
    "helpful": "helpful influences first",
    "largest": "largest influences of either sign first",
}
_NAME = 40  # characters of an order's name


@dataclass(frozen=True)
class Evaluation:
    """How well several orders of the training rows find those that a column marks."""

    run: str  #: the URL of the run that was evaluated
    column: str  #: what marks the rows
    same: bool  #: whether it marks, for each query, the rows of its own class
    rows: int  #: training rows
    true: int | None  #: rows that are to be found; None where that depends on the query
    queries: list[int]  #: the numbers of the queries that count
    side: Side  #: which influences are looked at first
    resamples: int
    seed: int
    figures: tuple[str, ...]  #: the figures' names
    lines: list[Line]  #: one per order, and one for the mean over the queries where each has an order
    notes: list[str]  #: what does not count, and why

    def table(self) -> pa.Table:
        """A row per order and figure: ranking, run, over (rows, queries or chance), figure, value, low, high."""
        return pa.Table.from_pylist(self._records(), schema=_SCHEMA)

    def by_query(self) -> pa.Table:
        """A row per order, query and figure, of those orders that each query has its own of: ranking, query, value.

        A query's number is the one that it has in the order's run; other runs may have had other queries.
        """
        found = [
            {"ranking": line.name, "run": line.run, "query": query, "figure": figure, "value": float(value)}
            for line in self.lines
            if line.each is not None and line.queries is not None
            for query, values in zip(line.queries.tolist(), line.each, strict=True)
            for figure, value in zip(self.figures, values, strict=True)
        ]
        return pa.Table.from_pylist(found, schema=_BY_QUERY)

    def json(self) -> str:
        """What was asked and all that `table` has, as a JSON object."""
        told: dict[str, Any] = {
            "run": self.run,
            "same" if self.same else "truth": self.column,
            "rows": self.rows,
            "true": self.true,
            "queries": len(self.queries),
            "side": self.side,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "seed": self.seed,
            "notes": self.notes,
            "figures": self._records(),
        }
        return json.dumps(told, indent=2, ensure_ascii=False)

    def csv(self) -> str:
        """What `table` has, as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, _SCHEMA.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._records())
        return text.getvalue()

    def draw(self) -> Any:
        """A matplotlib figure: AUC and recall with their intervals, and how the recall grows."""
        return draw(self.lines, self.figures, self.heading())

    def heading(self) -> str:
        """What was asked, on one line."""
        column, count = printable(self.column), counted(len(self.queries), "query", "queries")
        if self.same:
            return f"rows of the query's own {column} · {self.rows:,} rows, {count} · {_LOOKED_AT[self.side]}"
        assert self.true is not None
        marked = f"{self.true:,} of {counted(self.rows, 'row')} ({percent(self.true / self.rows)})"
        return f"{column}: {marked}, {count} · {_LOOKED_AT[self.side]}"

    def show(self, console: Console | None = None) -> None:
        """Print the table for people, on standard output unless another console is given."""
        console = console or Console(highlight=False)
        console.print(Text(self.heading(), style="bold"))
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("order by", overflow="fold")
        for name in self.figures:
            head = Text(printable(name).replace(" ", "\n"))
            table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
        for line in self.lines:
            cells = [
                _cell(float(value), None if line.bounds is None else line.bounds[at])
                for at, value in enumerate(line.values)
            ]
            label = Text(printable(line.label, _NAME))
            table.add_row(label, *cells, style="dim" if line.over == "chance" else "")
        console.print(table)
        for note in self._explained() + self.notes:
            console.print(Text(printable(note, 400)))

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=110, highlight=False))
        return text.getvalue().rstrip()

    def _explained(self) -> list[str]:
        told = []
        if any(line.over == "rows" for line in self.lines) and any(line.over == "queries" for line in self.lines):
            told.append("by query: the means of figures of an order for each query; else of one order, by their mean")
        shares = {line.over for line in self.lines if line.bounds is not None}
        if shares:
            by = " (by query: of the queries)" if len(shares) > 1 else ""
            whose = "rows" if "rows" in shares else "queries"
            told.append(
                f"second lines: {percent(CONFIDENCE)} intervals, by {self.resamples:,} resamples of the {whose}{by}"
            )
        return told

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "ranking": line.name,
                "run": line.run,
                "over": line.over,
                "figure": figure,
                "value": float(line.values[at]),
                "low": None if line.bounds is None else float(line.bounds[at, 0]),
                "high": None if line.bounds is None else float(line.bounds[at, 1]),
            }
            for line in self.lines
            for at, figure in enumerate(self.figures)
        ]


def _cell(value: float, bounds: Any) -> Text:
    if bounds is None:
        return Text(_short(value))
    return Text.assemble(_short(value), "\n", (f"{_short(bounds[0])}–{_short(bounds[1])}", "dim"))


def _short(value: float) -> str:
    """A share in three digits behind the point."""
    return f"{value:.3f}"


_SCHEMA = pa.schema(
    [
        pa.field("ranking", pa.string(), nullable=False),
        pa.field("run", pa.string()),
        pa.field("over", pa.string(), nullable=False),
        pa.field("figure", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
_BY_QUERY = pa.schema(
    [
        pa.field("ranking", pa.string(), nullable=False),
        pa.field("run", pa.string()),
        pa.field("query", pa.int32(), nullable=False),
        pa.field("figure", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
