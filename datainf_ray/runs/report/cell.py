"""A run in a notebook's cell: its summary, and of a finished one the first usable query with its top rows."""

from __future__ import annotations

from typing import Any, Protocol

import pyarrow as pa

from datainf_ray.runs.pictures import address, pictures_by
from datainf_ray.runs.report.render import render
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.texts import QUERY, ROW
from datainf_ray.runs.top import DIRECTIONS

_ROWS = 5  # of either direction


class Finished(Protocol):
    """What is read of a `runs.results.Run` that is done."""

    @property
    def top_k(self) -> int: ...

    def queries(self) -> pa.Table: ...

    def top(self, query: int | str = 0, k: int = 10, harmful: bool = False) -> pa.Table: ...

    def pictures(self) -> pa.Table: ...


def in_a_cell(run: Finished, summary: dict[str, Any], progress: str | None) -> str:
    """The HTML; `progress` says how far a run is that is not done."""
    query, tops, seen = None, {}, dict[str, dict[int, list[str]]]()
    if summary["state"] == "done":
        query = next((q for q in run.queries().to_pylist() if q["status"] == OK), None)
    if query:
        # the words beside the sign, as everywhere a person reads
        tops = {
            word: run.top(query["query"], min(_ROWS, run.top_k), harmful=word == "harmful").to_pylist()
            for word in DIRECTIONS
        }
        table = run.pictures()
        for kind in (ROW, QUERY) if len(table) else ():
            seen[kind] = {number: [address(one) for one in some] for number, some in pictures_by(table, kind).items()}
    return render("notebook.html.j2", summary=summary, progress=progress, query=query, tops=tops, seen=seen)
