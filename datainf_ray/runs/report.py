"""`report.html`: what a run found, in one self-contained page that a person can mail or open from a bucket."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from datainf_ray.runs.render import render, signed
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, matrix
from datainf_ray.runs.top import DIRECTIONS

_QUERIES = 20  # shown in full
_OPEN = 3  # of them unfolded
_ROWS = 10  # per table
_BLOCKS = 20
_SAMPLE = 2**26  # influences read for the distributions, whatever the size of the corpus

# Drawn in these colours, which become CSS variables, so that the page's light or dark scheme applies to the drawings.
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--helpful)", "#040404": "var(--harmful)"}

_STATUS = {
    OK: "has a loss and an influence on every query",
    "no_target_tokens": "nothing in it for the model to predict: empty, or its completion was cut off by max_length",
    "nonfinite": "its loss or gradient was infinite or not a number",
    "unreadable": "the row could not be read or turned into tokens",
    "crashed": "the worker that computed it died, again and again",
}


def write_report(run: Run) -> str:
    """Write report.html into the directory of a finished run and return its URL; the same run gives the same bytes."""
    run.directory.write("report.html", _page(run).encode())
    return run.directory.path("report.html")


def _page(run: Run) -> str:
    queries, tops = run.queries().to_pylist(), run.tops()
    usable = [q for q in queries if q["status"] == OK]
    shown = usable[:_QUERIES]
    values, share = _sample(run, [q["query"] for q in shown])
    blocks = run.blocks().sort_by([("mean_sqnorm", "descending")])
    return render(
        "report.html.j2",
        title=run.url.rstrip("/").rpartition("/")[2],
        config=run.config,
        config_yaml=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        document=run.document,
        summary=run.summary(),
        paths=_paths(run.config),
        queries=[_query(q, tops, values, at) for at, q in enumerate(shown)],
        usable=len(usable),
        unusable=[q for q in queries if q["status"] != OK],
        opened=_OPEN,
        share=share,
        has_scores=run.has_scores,
        overall=_overall(tops) if len(usable) > 1 else None,
        rows_per_table=_ROWS,
        top_k=run.top_k,
        status_meaning=_STATUS,
        blocks=blocks.slice(0, _BLOCKS).to_pylist(),
        blocks_total=blocks.num_rows,
        sqnorm_total=pc.sum(blocks["mean_sqnorm"]).as_py() or 0.0,
    )


def _paths(config: dict[str, Any]) -> dict[str, list[str]]:
    return {
        key: [config[key]["path"]] if isinstance(config[key]["path"], str) else list(config[key]["path"])
        for key in ("train", "queries")
    }


def _sample(run: Run, queries: list[int]) -> tuple[np.ndarray | None, float]:
    """The influences (rows × `queries`) of rows that have one, and the share of examples/ that was read for them.

    The whole where that is at most `_SAMPLE` numbers, else evenly spaced part files. None where there are no scores.
    """
    names = run.part_names()
    if not (run.has_scores and queries and names):
        return None, 0.0
    counts = run.document["counts"]
    step = max(1, math.ceil(counts["rows"] * counts["queries"] / _SAMPLE))
    chosen = names[::step]
    values = np.concatenate([matrix(part["influence"])[:, queries] for part in run.parts(chosen, ["influence"])])
    return values[np.isfinite(values).all(axis=1)], len(chosen) / len(names)


def _query(query: dict[str, Any], tops: pa.Table, values: np.ndarray | None, at: int) -> dict[str, Any]:
    """A query with its top rows; a row's `times` is its influence in units of the typical (median) one."""
    mine = tops.filter(pc.equal(tops["query"], query["query"])).to_pylist()
    strongest = max((abs(row["influence"]) for row in mine), default=0.0)
    typical = 0.0 if values is None or not len(values) else float(np.median(np.abs(values[:, at])))
    for row in mine:
        row["width"] = 100 * abs(row["influence"]) / strongest
        row["times"] = abs(row["influence"]) / typical if typical else None
    tables = {word: [row for row in mine if row["direction"] == word][:_ROWS] for word in DIRECTIONS}
    extra: dict[str, Any] = {"tables": tables, "typical": typical or None, "histogram": None, "signs": None}
    if values is not None and len(values):
        column = values[:, at]
        extra["signs"] = {"helpful": float(np.mean(column < 0)), "harmful": float(np.mean(column > 0))}
        extra["histogram"] = _histogram(column, f"query {query['query']}")
    return {**query, **extra}


def _overall(tops: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """By direction, the rows that stand among the first `_ROWS` of the most queries, if of more than one."""
    first = tops.filter(pc.less_equal(tops["rank"], _ROWS))
    grouped = first.group_by(["direction", "row", "id", "preview"]).aggregate([("query", "count"), ("rank", "mean")])
    often = grouped.filter(pc.greater(grouped["query_count"], 1))
    often = often.sort_by([("query_count", "descending"), ("rank_mean", "ascending"), ("row", "ascending")])
    return {word: often.filter(pc.equal(often["direction"], word)).slice(0, _ROWS).to_pylist() for word in DIRECTIONS}


def _histogram(values: np.ndarray, name: str) -> str:
    """The distribution of one query's influences as an inline SVG; the count is on a log scale, for the tails."""
    ink, line, helpful, harmful = _COLOURS
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / 60 or 1.0
    edges = np.arange(math.floor(low / width), max(math.ceil(high / width), 1) + 1) * width  # zero is an edge
    heights, _ = np.histogram(values, edges)
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.unicode_minus": True, "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 1.9), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(
            edges[:-1],
            heights,
            width * 0.9,
            align="edge",
            color=[helpful if e < -width / 2 else harmful for e in edges[:-1]],
        )
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6)
        axes.axvline(0, color=ink, linewidth=0.8)
        axes.set_xlabel("influence", color=ink)
        axes.set_title("← helpful", loc="left", color=helpful, fontsize=9)
        axes.set_title("harmful →", loc="right", color=harmful, fontsize=9)
        axes.set_ylabel("rows", color=ink)
        axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}")
        axes.xaxis.set_major_formatter(lambda tick, _: "0" if abs(tick) < width / 1e3 else signed(tick))
        axes.locator_params(axis="x", nbins=6)
        axes.tick_params(which="both", color=line, labelcolor=ink)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(line)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # inline in HTML, without the XML prologue
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="histogram of the influences on {name}" ', 1)
