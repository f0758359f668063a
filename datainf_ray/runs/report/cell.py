"""A run in a notebook's cell: its summary, and of a finished one the first usable query with its top rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from datainf_ray.runs.labels import Labels, given_in, predicted_in
from datainf_ray.runs.pictures import address, pictures_by
from datainf_ray.runs.record import RunRecord
from datainf_ray.runs.report.render import render
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.texts import QUERY, ROW
from datainf_ray.runs.top import DIRECTIONS

_ROWS = 5  # of either direction, where nobody says how many
_MOST_ROWS = 2**22  # of a run whose rows are gone through for what the model predicts for some


class Finished(Protocol):
    """What is read of a `runs.results.Run` that is done."""

    @property
    def top_k(self) -> int: ...

    def queries(self) -> pa.Table: ...

    def top(self, query: int | str = 0, k: int = 10, harmful: bool = False) -> pa.Table: ...

    def texts(self) -> pa.Table: ...

    def pictures(self) -> pa.Table: ...

    def part_names(self) -> list[str]: ...

    def parts(self, names: list[str], columns: list[str]) -> Iterable[pa.Table]: ...


@dataclass(frozen=True)
class Gallery:
    """A query and its top rows each way with their pictures, for a notebook's cell."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def in_a_cell(run: Finished, summary: dict[str, Any], record: RunRecord, progress: str | None) -> str:
    """The HTML; `progress` says how far a run is that is not done."""
    query = None
    if record.state == "done":
        query = next((q for q in run.queries().to_pylist() if q["status"] == OK), None)
    shown = _of_query(run, record, query, _ROWS)
    return render("notebook.html.j2", summary=summary, progress=progress, **shown)


def gallery(run: Finished, record: RunRecord, number: int, k: int) -> Gallery:
    """Of a query that has scores, its first `k` rows each way."""
    query = run.queries().slice(number, 1).to_pylist()[0]
    return Gallery(f"<div>{render('rows_in_a_cell.html.j2', **_of_query(run, record, query, k))}</div>")


def _of_query(run: Finished, record: RunRecord, query: dict[str, Any] | None, k: int) -> dict[str, Any]:
    """What the template takes: the query, its rows by direction, their labels, and pictures by kind and number."""
    if query is None:
        return {"query": None, "tops": {}, "labels": {}, "seen": {}}
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
    return {"query": query, "tops": tops, "labels": _labels(run, record, listed), "seen": seen}


def _labels(run: Finished, record: RunRecord, rows: set[int]) -> dict[int, dict[str, Any] | None]:
    """Those of some rows where the model predicts any, and the run has not very many rows."""
    if not rows or record.counts is None or record.counts.rows > _MOST_ROWS:
        return {}
    predicted = predicted_in(run.parts(run.part_names(), ["row", "predicted"]), rows)
    if not predicted:
        return {}
    found = Labels(given_in(run.texts(), rows), predicted)
    return {row: found.of(row) for row in rows}
