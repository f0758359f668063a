"""The report's section on influence by a column of the corpus, of a run whose configuration has `results.by`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import DamagedError, one_line
from datainf_ray.common.words import percent, printable
from datainf_ray.runs.by import BY_FILE, stored_by
from datainf_ray.runs.report.render import count, signed
from datainf_ray.runs.results import Run

_VALUES = 20  # of a column, of each query
_NAME = 100  # characters of a value


@dataclass(frozen=True)
class Values:
    """The values with the largest sums, as of one query; texts are plain, numbers as a person reads them."""

    query: int | None  #: None: all of them together
    id: str | None
    rows: list[dict[str, Any]]
    more: int  #: values that are left out


@dataclass(frozen=True)
class ByColumn:
    """What the section says."""

    column: str
    queries: list[Values]
    problem: str | None = None  #: why there is nothing to show


def by_column(run: Run, queries: Sequence[int]) -> ByColumn | None:
    """Of a finished run, for all queries together and for those of these numbers; None where none was asked for."""
    column = run.config["results"].get("by")
    if column is None:
        return None
    try:
        table = stored_by(run)
    except DamagedError as error:
        return ByColumn(column, [], f"{one_line(error)}.")
    if table is None:
        return ByColumn(
            column, [], f"There is no {BY_FILE}: the rows could not be read again, or not be grouped by it."
        )
    together = table.filter(pc.is_null(table["query"]))
    each = [table.filter(pc.equal(table["query"], query)) for query in queries]
    return ByColumn(column, [_values(one) for one in (together, *each) if len(one)])


def _values(table: pa.Table) -> Values:
    """Of the rows of one query."""
    sizes = pc.abs(table["sum"])
    ordered = table.append_column("size", sizes).append_column("at", pa.array(range(len(table))))
    ordered = ordered.sort_by([("size", "descending"), ("at", "ascending")]).slice(0, _VALUES)
    largest = pc.max(sizes).as_py() or 1.0
    first = table.slice(0, 1).to_pylist()[0]
    rows = [_row(row, largest) for row in ordered.to_pylist()]
    return Values(first["query"], first["id"], rows, len(table) - len(rows))


def _row(row: dict[str, Any], largest: float) -> dict[str, Any]:
    within = "" if row["low"] is None or row["mean"] is None else f" ± {row['high'] - row['mean']:.1e}"
    scored = count(row["scored"])
    return {
        "value": "(null)" if row["value"] is None else printable(row["value"], _NAME),
        "side": "harmful" if row["sum"] > 0 else "helpful",
        "width": 100 * row["size"] / largest,
        "sum": signed(row["sum"]),
        "share": percent(row["share"]),
        "mean": f"{signed(row['mean'])}{within}",
        "rows": scored if row["scored"] == row["rows"] else f"{scored} of {count(row['rows'])}",
    }
