"""`run.plot`: what a run found, as matplotlib figures, for notebooks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plots:
    """Figures of one run. Each is a `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes.

    >>> run.plot.distribution("eval.jsonl#0").savefig("influence.png")

    Raises `RequestError` where the run is not done, or does not hold what is to be drawn.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def distribution(self, query: int | str = 0) -> Figure:
        """How many rows have which influence on a query, by its number or id."""
        return _shown(_drawing().histogram(self._influences(query), _drawing().PRINT))

    def cumulative(self, query: int | str = 0) -> Figure:
        """How much of all help and of all harm to a query the first so many rows carry."""
        return _shown(_drawing().cumulative(self._influences(query), _drawing().PRINT))

    def layers(self, query: int | str = 0) -> Figure:
        """By layer and module the mean size of influences on a query, where the run has `results.blocks`; else, for all
        queries together, the mean squared gradient norm of the training rows.
        """
        blocks = self._run.blocks()
        names, counts = blocks["block"].to_pylist(), self._run.record.counts
        if not self._run.config["results"]["blocks"] or counts is None:
            values = [value or 0.0 for value in blocks["mean_sqnorm"].to_pylist()]
            return _shown(_drawing().layers(dict(zip(names, values, strict=True)), "mean ‖g‖²", _drawing().PRINT))
        number, rows, total = self._run.query_number(query), 0, np.zeros(len(names))
        for part in self._run.parts(self._run.part_names(), ["block_influence"]):
            each = matrix(part["block_influence"])[:, number * len(names) : (number + 1) * len(names)]
            each = each[np.isfinite(each).all(axis=1)]
            rows, total = rows + len(each), total + np.abs(each.astype(np.float64)).sum(axis=0)
        means = total / max(rows, 1)
        return _shown(
            _drawing().layers(dict(zip(names, means.tolist(), strict=True)), "mean |influence|", _drawing().PRINT)
        )

    def timeline(self) -> Figure:
        """Which worker computed which sweep, and when."""
        drawing = _drawing()
        from datainf_ray.runs.report.timeline import draw, timeline

        times = timeline(self._run.events())
        if times is None:
            raise RequestError("run", self._run.url, "has no events of workers")
        return _shown(draw(times, drawing.PRINT))

    def by(self, column: str, query: int | str = 0) -> Figure:
        """The mean influence on a query of the rows with each value of a column of the corpus, as `run.by` has it.

        `query` may be "all": all queries together, of a run of several.
        """
        run: Any = self._run  # one of `session.run`, which can read the corpus
        table: pa.Table = run.by(column)
        number = None if query == "all" else self._run.query_number(query)
        return _shown(_drawing().by_value(table, column, number, _drawing().PRINT))

    def _influences(self, query: int | str) -> np.ndarray:
        """Of all rows that have one, on one query."""
        number = self._run.query_number(query)
        if not self._run.has_scores:
            raise RequestError("run", self._run.url, "stored no scores (results.scores: false)", "use top()")
        parts = self._run.parts(self._run.part_names(), ["influence"])
        values = [matrix(part["influence"])[:, number] for part in parts]
        found = np.concatenate([np.empty(0, np.float32), *values])
        found = found[np.isfinite(found)]
        if not len(found):
            raise RequestError("run", self._run.url, "no row has a score")
        return found


def _drawing() -> Any:
    """The module of figures; `RequestError` where there is no matplotlib."""
    try:
        from datainf_ray.runs.report import figures
    except ImportError as error:
        raise RequestError("plot", None, f"cannot be drawn: {error}", "pip install matplotlib") from None
    return figures


def _shown(figure: Figure) -> Figure:
    """The figure, as one that a notebook shows whether or not matplotlib was told that there is one."""

    def png() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    figure.__dict__["_repr_png_"] = png
    return figure
