"""What a run found, as matplotlib figures: in the colours of the report's page, or of a notebook's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datainf_ray.common.words import printable
from datainf_ray.runs.report.drawing import PAGE, PRINT, Palette, plain, styled
from datainf_ray.runs.report.render import signed

__all__ = ["PRINT", "by_value", "carried", "cumulative", "histogram", "layer_of", "layers"]

_BINS = 60
_MOST_VALUES = 30  # of a column
_POINTS = 400  # of a curve
_NAME = 24  # characters of a value's name


def histogram(values: np.ndarray, palette: Palette = PAGE) -> Figure:
    """The distribution of one query's influences; the count is on a log scale, for the tails."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / _BINS or 1.0
    edges = np.arange(math.floor(low / width), max(math.ceil(high / width), 1) + 1) * width  # zero is an edge
    heights, _ = np.histogram(values, edges)
    with styled("histogram"):
        figure = Figure(figsize=(9, 1.9))
        axes = figure.add_axes((0.1, 0.25, 0.84, 0.6))  # a layout engine takes as long again as the drawing
        colours = [palette.helpful if e < -width / 2 else palette.harmful for e in edges[:-1]]
        axes.bar(edges[:-1], heights, width * 0.9, align="edge", color=colours)
        axes.set_yscale("log", subs=[])  # no minor ticks
        axes.set_ylim(bottom=0.6)
        axes.axvline(0, color=palette.ink, linewidth=0.8)
        axes.set_xlabel("influence", color=palette.ink)
        axes.set_ylabel("rows", color=palette.ink)
        axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}")
        _titled(axes, palette)
        _of_influence(axes, width / 1e3)
        plain(axes, palette)
    return figure


def cumulative(values: np.ndarray, palette: Palette = PAGE) -> Figure:
    """How much of all help, and of all harm, the first so many rows carry; the rows are on a log scale."""
    with styled("cumulative"):
        figure = Figure(figsize=(9, 2.6))
        axes = figure.add_axes((0.1, 0.19, 0.84, 0.7))
        for sign, word, colour in ((-1, "helpful", palette.helpful), (1, "harmful", palette.harmful)):
            rows, shares = carried(sign * values)
            if len(rows):
                axes.plot(rows, 100 * shares, color=colour, label=f"the most {word} rows")
                axes.legend(loc="lower right", frameon=False, labelcolor=palette.ink)
        axes.set_xscale("log")
        axes.set_ylim(0, 102)
        axes.set_xlabel("rows, the strongest first", color=palette.ink)
        axes.set_ylabel("% of the influence", color=palette.ink)
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}")
        plain(axes, palette)
    return figure


def carried(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of rows k, some hundred, and the share of the sum of all positive values that the k largest make."""
    strong = np.sort(values[values > 0].astype(np.float64))[::-1]
    if not len(strong):
        return np.empty(0, np.int64), np.empty(0)
    sums = np.cumsum(strong)
    rows = np.unique(np.geomspace(1, len(strong), _POINTS).round().astype(np.int64))
    return rows, sums[rows - 1] / sums[-1]


def layers(blocks: Mapping[str, float], what: str, palette: Palette = PAGE) -> Figure:
    """A bar for each layer, of the sum of its blocks' values, by module; `blocks` are the values by name.

    A block's layer is the first number in its name, its module what is before the last dot but one.
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in blocks.items():
        layer, module = layer_of(name)
        of = found.setdefault(module, {})
        of[layer] = of.get(layer, 0.0) + value
    numbers = sorted({layer for of in found.values() for layer in of}, key=lambda k: (not k.isdigit(), len(k), k))
    places = {layer: place for place, layer in enumerate(numbers)}
    with styled("layers"):
        figure = Figure(figsize=(9, 2.6))
        axes = figure.add_axes((0.1, 0.19, 0.84, 0.7))
        bottom = np.zeros(len(numbers))
        for k, (module, of) in enumerate(found.items()):
            heights = np.array([of.get(layer, 0.0) for layer in numbers])
            colour = palette.series[k % len(palette.series)]
            axes.bar(list(places.values()), heights, 0.8, bottom, color=colour, label=printable(module, _NAME))
            bottom += heights
        step = max(1, len(numbers) // 24)
        axes.set_xticks(range(0, len(numbers), step), [printable(layer, 12) for layer in numbers[::step]])
        axes.set_xlabel("layer", color=palette.ink)
        axes.set_ylabel(what, color=palette.ink)
        axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:.3g}")
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=6, frameon=False, labelcolor=palette.ink, borderaxespad=0,
            handlelength=1, handleheight=0.8,
        )  # fmt: skip
        plain(axes, palette)
    return figure


def layer_of(block: str) -> tuple[str, str]:
    """The layer and the module of a block.

    >>> layer_of("model.layers.11.self_attn.q_proj.lora_A.default.weight")
    ('11', 'q_proj')
    """
    number = re.search(r"(?<![^.])\d+(?![^.])", block)
    parts = [p for p in re.split(r"[.]", block) if p not in ("weight", "default") and not p.startswith("lora_")]
    return number[0] if number else "none", (parts or [block])[-1]


def by_value(table: pa.Table, column: str, query: int | None, palette: Palette = PAGE) -> Figure:
    """The mean influence of the rows with each value of a column on one query, with its interval; None: on all queries.

    `table` has columns value, query (null: all of them), mean, low, high and scored, the number of rows; the values of
    the largest means are shown.
    """
    chosen = pc.is_null(table["query"]) if query is None else pc.equal(table["query"], query)
    mine = table.filter(chosen).to_pylist()
    mine = sorted(mine, key=lambda one: -abs(one["mean"] or 0.0))[:_MOST_VALUES]
    mine.sort(key=lambda one: one["mean"] or 0.0)
    with styled("by value"):
        height = 0.85 + 0.24 * max(1, len(mine))
        figure = Figure(figsize=(9, height))
        axes = figure.add_axes((0.32, 0.45 / height, 0.62, 1 - 0.75 / height))
        for place, one in enumerate(mine):
            mean = one["mean"] or 0.0
            axes.barh(place, mean, 0.7, color=palette.helpful if mean < 0 else palette.harmful)
            if one["low"] is not None and one["high"] is not None:
                axes.plot([one["low"], one["high"]], [place, place], color=palette.ink, linewidth=1.2)
        names = [f"{printable(str(one['value']), _NAME)} ({one['scored']:,})" for one in mine]
        axes.set_yticks(range(len(mine)), names)
        axes.axvline(0, color=palette.ink, linewidth=0.8)
        of = "all queries, in root mean squares" if query is None else f"query {query}"
        axes.set_xlabel(f"mean influence on {of}, by {printable(column, _NAME)} (rows)", color=palette.ink)
        _titled(axes, palette)
        _of_influence(axes, max((abs(one["mean"] or 0.0) for one in mine), default=0.0) / 1e6)
        plain(axes, palette)
    return figure


def _titled(axes: Axes, palette: Palette) -> None:
    axes.set_title("← helpful", loc="left", color=palette.helpful, fontsize=9)
    axes.set_title("harmful →", loc="right", color=palette.harmful, fontsize=9)


def _of_influence(axes: Axes, nothing: float) -> None:
    """Ticks that are influences; what is smaller than `nothing` is 0."""
    axes.xaxis.set_major_formatter(lambda tick, _: "0" if abs(tick) <= nothing else signed(tick))
    axes.locator_params(axis="x", nbins=6)
