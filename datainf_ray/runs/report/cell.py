"""What a notebook's cell shows of a run."""

from __future__ import annotations

from typing import Any

from datainf_ray.runs.labels import Labels, given_in, predicted_in
from datainf_ray.runs.record import RunRecord
from datainf_ray.runs.report.render import render
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.top import DIRECTIONS

_ROWS = 5  # of either direction
_MOST_ROWS = 2**22  # of a run whose rows are gone through for what the model predicts for some


def cell(run: Any, summary: dict[str, Any], record: RunRecord, progress: str | None) -> str:
    """The summary of a `results.Run`; of a running one how far it is; of a finished one the first usable query with its
    top rows.
    """
    query, tops = None, {}
    if record.state == "done":
        query = next((q for q in run.queries().to_pylist() if q["status"] == OK), None)
    if query:
        # the words beside the sign, as everywhere a person reads
        tops = {
            word: run.top(query["query"], min(_ROWS, run.top_k), harmful=word == "harmful").to_pylist()
            for word in DIRECTIONS
        }
    labels = _labels(run, record, {row["row"] for rows in tops.values() for row in rows})
    return render("notebook.html.j2", summary=summary, progress=progress, query=query, tops=tops, labels=labels)


def _labels(run: Any, record: RunRecord, rows: set[int]) -> dict[int, dict[str, Any] | None]:
    """Those of some rows where the model predicts any, and the run has not very many rows."""
    if not rows or record.counts is None or record.counts.rows > _MOST_ROWS:
        return {}
    predicted = predicted_in(run.parts(run.part_names(), ["row", "predicted"]), rows)
    if not predicted:
        return {}
    found = Labels(given_in(run.texts(), rows), predicted)
    return {row: found.of(row) for row in rows}
