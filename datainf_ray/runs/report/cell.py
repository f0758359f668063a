"""A run in a notebook's cell: its summary, and of a finished one the first usable query with its top rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from datainf_ray.runs.pictures import address, pictures_by
from datainf_ray.runs.report.render import render
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.texts import QUERY, ROW
from datainf_ray.runs.top import DIRECTIONS

_ROWS = 5  # of either direction, where nobody says how many


class Finished(Protocol):
    """What is read of a `runs.results.Run` that is done."""

    @property
    def top_k(self) -> int: ...

    def queries(self) -> pa.Table: ...

    def top(self, query: int | str = 0, k: int = 10, harmful: bool = False) -> pa.Table: ...

    def pictures(self) -> pa.Table: ...


@dataclass(frozen=True)
class Gallery:
    """A query and its top rows each way with their pictures, for a notebook's cell."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def in_a_cell(run: Finished, summary: dict[str, Any], progress: str | None) -> str:
    """The HTML; `progress` says how far a run is that is not done."""
    query = None
    if summary["state"] == "done":
        query = next((q for q in run.queries().to_pylist() if q["status"] == OK), None)
    shown = _of_query(run, query, _ROWS)
    return render("notebook.html.j2", summary=summary, progress=progress, **shown)


def gallery(run: Finished, number: int, k: int) -> Gallery:
    """Of a query that has scores, its first `k` rows each way."""
    query = run.queries().slice(number, 1).to_pylist()[0]
    return Gallery(f"<div>{render('rows_in_a_cell.html.j2', **_of_query(run, query, k))}</div>")


def _of_query(run: Finished, query: dict[str, Any] | None, k: int) -> dict[str, Any]:
    """What the template takes: the query, its rows by direction, and pictures by kind and number."""
    if query is None:
        return {"query": None, "tops": {}, "seen": {}}
    # the words beside the sign, as everywhere a person reads
    tops = {
        word: run.top(query["query"], min(k, run.top_k), harmful=word == "harmful").to_pylist() for word in DIRECTIONS
    }
    listed = {row["row"] for rows in tops.values() for row in rows}
    table, wanted = run.pictures(), {ROW: listed, QUERY: {query["query"]}}
    seen = {
        kind: {n: [address(one) for one in some] for n, some in pictures_by(table, kind).items() if n in numbers}
        for kind, numbers in wanted.items()
    }
    return {"query": query, "tops": tops, "seen": seen}
