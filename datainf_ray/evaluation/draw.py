"""An evaluation as a figure: the orders one below the other, with their intervals; and how the recall grows."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import open_store, reason
from datainf_ray.common.words import percent, printable
from datainf_ray.config import options_among
from datainf_ray.evaluation.figures import CONFIDENCE
from datainf_ray.evaluation.lines import SHARES, Line
from datainf_ray.runs.report.drawing import styled

#: Okabe and Ito's, which people see apart whatever colours they see; grey is chance.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#6a3d9a")
#: When all colours are taken they are taken again, with the next of these, of points and of curves.
_MARKS = (("o", "-"), ("s", ":"), ("^", "-."))
_CHANCE, _INK = "#8a8a8a", "#333333"
_KINDS = ("svg", "png", "pdf")
Looks = dict[tuple[str, str | None], tuple[str, str, str]]  #: by name and run: colour, marker and kind of line
_NAME = 36  # characters of an order's name


def suffix_of(path: str) -> str:
    """What kind of file a figure is to be; `RequestError` where it is none that can be drawn."""
    suffix = path.lower().rpartition(".")[2]
    if suffix not in _KINDS:
        raise RequestError(
            "--figure", path, "is no kind of figure", f"end it in {' or '.join(f'.{k}' for k in _KINDS)}"
        )
    return suffix


def save(figure: Figure, path: str, kind: str, overrides: dict[str, Any]) -> None:
    """Write a figure to a path or fsspec URL. Raises `RequestError` where that cannot be written."""
    content = io.BytesIO()
    with styled("evaluation"):
        figure.savefig(content, format=kind, dpi=150, metadata=None if kind == "png" else {"Date": None})
    fs, place = open_store(path, "--figure", options_among(overrides))
    try:
        fs.pipe_file(place, content.getvalue())
    except Exception as error:  # every store raises errors of its own
        raise RequestError("--figure", path, f"cannot be written: {reason(error)}") from None


def draw(lines: Sequence[Line], figures: Sequence[str], heading: str) -> Figure:
    """The figures of `lines`, which are in the order of their names in `figures`."""
    orders = [line for line in lines if line.over != "chance"]
    chance = next(line for line in lines if line.over == "chance")
    looks = _looks(orders)
    shown = [at for at, name in enumerate(figures) if name == "AUC" or name.startswith("recall")][:3]
    curves = [line for line in orders if line.curve is not None]
    with styled("evaluation"):
        height = 1.5 + 0.34 * len(orders)
        panels = len(shown) + bool(curves)
        figure = Figure(figsize=(3.2 + 3.1 * panels, max(height, 3.4 if curves else 2.2)), layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", color=_INK, fontsize=10)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for at, panel in zip(shown, axes, strict=False):
            _points(panel, orders, at, looks, float(chance.values[at]))
            panel.set_title(figures[at], color=_INK, fontsize=9)
            if panel is axes[0]:
                panel.set_yticks(range(len(orders)), [printable(line.label, _NAME) for line in orders])
            else:
                panel.set_yticks(range(len(orders)), [""] * len(orders))
            for line, label in zip(orders, panel.get_yticklabels(), strict=True):
                label.set_color(looks[line.name, line.run][0])  # the curves are known by it
        figure.supxlabel(_legend(orders), x=0.01, ha="left", color=_INK, fontsize=8)
        if curves:
            _curves(axes[-1], curves, looks)
        return figure


def _legend(orders: Sequence[Line]) -> str:
    told = ["dashed: a random order"]
    if any(line.bounds is not None for line in orders):
        told.append(f"bars: {percent(CONFIDENCE)} intervals")
    if len({line.over for line in orders}) > 1:
        told.append("open marks: the mean over the queries, of an order for each")
    return " · ".join(told)


def _looks(orders: Sequence[Line]) -> Looks:
    """How each order looks; by the queries' mean and by query it looks the same."""
    names = list(dict.fromkeys((line.name, line.run) for line in orders))
    rounds = itertools.cycle(itertools.product(_MARKS, _COLOURS))
    return {name: (colour, *marks) for name, (marks, colour) in zip(names, rounds, strict=False)}


def _points(panel: Axes, orders: Sequence[Line], at: int, looks: Looks, by_chance: float) -> None:
    """One figure of every order, from the top; an open mark is a mean over queries where others are not."""
    mixed = len({line.over for line in orders}) > 1
    for place, line in enumerate(orders):
        (colour, mark, _), value = looks[line.name, line.run], line.values[at]
        if line.bounds is not None:
            panel.plot(line.bounds[at], [place, place], color=colour, linewidth=2, alpha=0.55, solid_capstyle="butt")
        face = "white" if mixed and line.over == "queries" else colour
        panel.plot([value], [place], mark, color=colour, markerfacecolor=face, markersize=6)
    panel.axvline(by_chance, color=_CHANCE, linestyle="--", linewidth=1)
    panel.set_ylim(len(orders) - 0.4, -0.6)
    panel.set_xlim(-0.02, 1.02)
    _thin(panel)
    panel.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    panel.set_axisbelow(True)


def _curves(panel: Axes, lines: Sequence[Line], looks: Looks) -> None:
    """The share of the true rows that is found, by the share of all rows that is looked at."""
    panel.plot([0, 1], [0, 1], color=_CHANCE, linestyle="--", linewidth=1)
    for line in lines:
        assert line.curve is not None  # as the caller has seen to
        colour, _, style = looks[line.name, line.run]
        panel.plot(SHARES, line.curve, style, color=colour, linewidth=1.6)
    panel.set_title("found, by rows looked at", color=_INK, fontsize=9)
    panel.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    panel.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.01)
    _thin(panel)


def _thin(panel: Axes) -> None:
    panel.tick_params(colors=_CHANCE, labelcolor=_INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(_CHANCE)
