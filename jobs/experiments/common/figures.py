"""Figures: panels side by side, drawn the same way everywhere, with the same bytes for the same numbers."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib import pyplot

#: A method has the same colour in every figure.
COLOURS = {
    "datainf": "#0072b2",
    "exact": "#000000",
    "lissa": "#e69f00",
    "hessian-free": "#d55e00",
    "cosine": "#cc79a7",
    "representation": "#009e73",
    "loss": "#777777",
    "bm25": "#56b4e9",
}


def axes(panels: int, x: str, y: str, columns: int = 4) -> tuple[Any, list[Any]]:
    """A drawing and its panels, which share their axes."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "datainf-ray"
    wide = min(panels, columns)
    rows = -(-panels // wide)
    drawing, places = pyplot.subplots(
        rows, wide, figsize=(3.2 * wide, 2.8 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    drawing.supxlabel(x)
    drawing.supylabel(y)
    for place in places.flat[panels:]:
        place.set_visible(False)
    return drawing, list(places.flat[:panels])


def save(drawing: Any, places: list[Any]) -> bytes:
    """The drawing as SVG, with a legend of what its panels show, each once."""
    found: dict[str, Any] = {}
    for place in places:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        where = {"loc": "outside upper center", "ncols": min(len(found), 5), "frameon": False}
        drawing.legend(found.values(), found.keys(), **where)
    sink = io.BytesIO()
    drawing.savefig(sink, format="svg", metadata={"Date": None})
    pyplot.close(drawing)
    return sink.getvalue()
