"""Figures: panels side by side, drawn the same way everywhere, with the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot

#: A method has the same line in every figure: its colour, and dashes where it looks at no gradient or at no query.
STYLES: dict[str, dict[str, Any]] = {
    "datainf": {"color": "#0072b2"},
    "exact": {"color": "#000000"},
    "lissa": {"color": "#e69f00"},
    "lissa, scale 1": {"color": "#e69f00", "linestyle": "--"},
    "hessian-free": {"color": "#d55e00"},
    "cosine": {"color": "#cc79a7"},
    "representation": {"color": "#009e73", "linestyle": "--"},
    "bm25": {"color": "#56b4e9", "linestyle": "--"},
    "pixels": {"color": "#56b4e9", "linestyle": "--"},
    "loss": {"color": "#777777", "linestyle": "--"},
    "norm": {"color": "#bbbbbb", "linestyle": "--"},
    "self-influence": {"color": "#882255", "linestyle": "--"},
    "loss and datainf": {"color": "#0072b2", "linestyle": ":"},
}


def _style() -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "datainf-ray"  # else the names in an SVG are drawn at random


def axes(panels: int, x: str, y: str, columns: int = 2) -> tuple[Any, list[Any]]:
    """A drawing and its panels, which share their axes."""
    _style()
    wide = min(panels, columns)
    rows = -(-panels // wide)
    drawing, places = pyplot.subplots(
        rows,
        wide,
        figsize=(3.6 * wide + 1.8, 2.9 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    drawing.supxlabel(x)
    drawing.supylabel(y)
    for place in places.flat[panels:]:
        place.set_visible(False)
    return drawing, list(places.flat[:panels])


def dots(names: Sequence[str], columns: Mapping[str, Sequence[float]]) -> bytes:
    """A line for every name, from top to bottom, and beside each other its values, a panel a column, by logarithm."""
    _style()
    drawing, places = pyplot.subplots(
        1, len(columns), figsize=(8, 0.8 + 0.27 * len(names)), sharey=True, squeeze=False, layout="constrained"
    )
    for place, (title, values) in zip(places.flat, columns.items(), strict=True):
        place.plot(values, range(len(names)), "o", color="#0072b2")
        place.set_xscale("log")
        place.set_title(title, fontsize=10)
        place.grid(axis="both", alpha=0.3)
        place.set_yticks(range(len(names)), names)
    places[0][0].invert_yaxis()
    return save(drawing, list(places.flat))


def intervals(names: Sequence[str], columns: Mapping[str, Sequence[tuple[float, float, float]]]) -> bytes:
    """A line for every name, from top to bottom, and beside each other its means with their intervals, a panel each."""
    _style()
    drawing, places = pyplot.subplots(
        1, len(columns), figsize=(2.4 * len(columns) + 1.2, 0.8 + 0.27 * len(names)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for place, (title, values) in zip(places.flat, columns.items(), strict=True):
        for at, (name, (mean, low, high)) in enumerate(zip(names, values, strict=True)):
            color = STYLES.get(name, {"color": "#777777"})["color"]
            place.plot([low, high], [at, at], color=color)
            place.plot([mean], [at], "o", color=color, markersize=5)
        place.axvline(0, color="#999999", linewidth=0.8)
        place.set_title(title, fontsize=9)
        place.grid(axis="both", alpha=0.3)
        place.set_yticks(range(len(names)), names)
    places[0][0].invert_yaxis()
    return save(drawing, list(places.flat))


def save(drawing: Any, places: list[Any]) -> bytes:
    """The drawing as SVG, with a legend of what its panels show, each once."""
    found: dict[str, Any] = {}
    for place in places:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        drawing.legend(found.values(), found.keys(), loc="outside right upper", frameon=False, fontsize=9)
    sink = io.BytesIO()
    drawing.savefig(sink, format="svg", metadata={"Date": None})
    pyplot.close(drawing)
    return sink.getvalue()
