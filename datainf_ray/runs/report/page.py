"""`report.html`: what a run found, in one self-contained page that a person can mail or open from a bucket."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from matplotlib.figure import Figure

from datainf_ray.common.words import byte_size
from datainf_ray.runs.record import tell_half_precision, tell_left_out
from datainf_ray.runs.report import timeline
from datainf_ray.runs.report.by_token import sections
from datainf_ray.runs.report.drawing import HARMFUL, HELPFUL, INK, inline_svg, plain, styled
from datainf_ray.runs.report.render import count, render, signed
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, matrix
from datainf_ray.runs.top import DIRECTIONS

_QUERIES = 20  # shown in full
_OPEN = 3  # of them unfolded
_ROWS = 10  # per table
_BLOCKS = 20
_SAMPLE = 2**24  # influences read for the distributions, whatever the size of the corpus
_PLACES = 4  # parts from which they come at least; a row group has 2**22 of them

_STATUS = {
    OK: "has a loss and an influence on every query",
    "no_target_tokens": "nothing in it for the model to predict: empty, or its completion was cut off by max_length",
    "nonfinite": "its loss or gradient was infinite or not a number",
    "unreadable": "the row could not be read or turned into tokens",
    "failed": "the model could not compute it, and said why: see detail",
    "crashed": "the worker that computed it died, again and again",
}


def write_report(run: Run) -> str:
    """Write report.html into the directory of a finished run and return its URL; the same run gives the same bytes."""
    run.directory.write("report.html", _page(run).encode())
    return run.directory.path("report.html")


def _page(run: Run) -> str:
    queries, tops, summary = run.queries().to_pylist(), run.tops(), run.summary()
    usable = [q for q in queries if q["status"] == OK]
    shown = usable[:_QUERIES]
    values, share = _sample(run, [q["query"] for q in shown])
    blocks = run.blocks().sort_by([("mean_sqnorm", "descending")])
    return render(
        "report.html.j2",
        title=run.url.rstrip("/").rpartition("/")[2],
        config=run.config,
        config_yaml=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        record=run.record,
        summary=summary,
        remarks=_remarks(summary),
        timeline=None if (times := timeline.timeline(run.events())) is None else timeline.describe(times),
        paths=_paths(run.config),
        queries=[_query(q, tops, values, at) for at, q in enumerate(shown)],
        by_token=sections(run, [q["query"] for q in shown]),
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


def _remarks(summary: dict[str, Any]) -> list[str]:
    """How the work was done, a paragraph each; nothing of what an older run does not say."""
    remarks = []
    if answers := summary["answers"]:
        remarks.append(f"Answered from the gradient index of {answers['run']}: the corpus was not gone through again.")
    if combined := summary["combined"]:
        terms = " + ".join(f"{one['weight']:g} × {one['run']}" for one in combined)
        what = "Every influence is the weighted sum of those in"
        remarks.append(f"{what} {_many(len(combined), 'run')}: {terms}. Losses are weighted means.")
    if summary["sizes"]:
        remarks.append(_of_sizes(**summary["sizes"]))
    if summary["dtype"] in ("bfloat16", "float16"):
        told = tell_half_precision(summary["dtype"])
        remarks.append(f"{told[0].upper()}{told[1:]}.")
    if cut := summary["rows_cut"]:
        remarks.append(f"{_many(cut, 'row')} had more tokens than max_length; the model saw no more of them than that.")
    if lost := sum(sweep.get("recomputed") or 0 for sweep in summary["sweeps"]):
        remarks.append(f"The kept gradients of {_many(lost, 'chunk')} were lost and had to be computed again.")
    if summary["curvature"]:
        remarks += _of_curvature(**summary["curvature"])
    if unsolved := summary["unsolved"]:
        remarks.append(f"{unsolved[0].upper()}{unsolved[1:]}.")
    if summary["left_out"]:
        remarks.append(tell_left_out(summary["left_out"], summary["blocks"]) + ".")
    if summary["index"]:
        remarks.append(_of_index(**summary["index"]))
    return remarks


def _of_sizes(
    *, chunk_rows: int, batch_tokens: int, groups: Sequence[Any], gradients: str, why: str | None = None, **_: Any
) -> str:
    text = f"Chunks of {_many(chunk_rows, 'row')} in batches of at most {count(batch_tokens)} tokens, padding included"
    if len(groups) > 1:
        text += f"; the queries in {len(groups)} groups"
    kept = "gradients were kept between the sweeps" if gradients == "keep" else "every sweep computed its gradients"
    reason = (why or kept).rstrip(".")
    return f"{text}. {reason[0].upper()}{reason[1:]}."


def _of_curvature(
    *,
    rows: int,
    sampled: bool,
    bound: float | None = None,
    exact_blocks: int = 0,
    sampling_error: float | None = None,
    error: float | None = None,  # what earlier versions called it
    way: str | None = None,
    residual: float | None = None,
    iterations: int | None = None,
    **_: Any,
) -> list[str]:
    remarks = []
    if sampled:
        text = f"The curvature is that of a random sample of {_many(rows, 'row')}"
        error = error if sampling_error is None else sampling_error
        if error is not None:
            text += f"; its two halves suggest a relative error of {100 * error:.2g} % in the inverse-Hessian products"
        remarks.append(text + ".")
    if bound:
        remarks.append(
            "The curvature was summed while the damping was not yet known, at values around it, and interpolated: "
            f"that adds a relative error of at most {bound:.1e}."
        )
    if residual is not None:
        left = f"the relative residual of a block's inverse-Hessian products is at most {residual:.1e}"
        how = f"{way}, {_many(iterations, 'iteration')}" if iterations else way
        remarks.append(f"The inverse was computed block by block ({how}): {left}.")
    if exact_blocks:
        what = "was not exact enough, so there was one more sweep, at the damping itself"
        remarks.append(f"For {_many(exact_blocks, 'block')} interpolating {what}.")
    return remarks


def _of_index(
    *,
    url: str,
    dtype: str,
    bytes: int | None = None,
    projection: int | None = None,
    correlation: float | None = None,
    correlation_rows: int | None = None,
    **_: Any,
) -> str:
    text = f"A gradient index for later queries is at {url}: {byte_size(bytes)} of {dtype}"
    if projection:
        text += f", projected to {projection} per side of a block"
    if correlation is not None:
        text += f". Influences from it correlate {correlation:.4f} with those of this report"
        text += f", over {_many(correlation_rows, 'row')}" if correlation_rows else ""
    return text + "."


def _many(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _paths(config: dict[str, Any]) -> dict[str, list[str]]:
    return {
        key: [config[key]["path"]] if isinstance(config[key]["path"], str) else list(config[key]["path"])
        for key in ("train", "queries")
    }


def _sample(run: Run, queries: list[int]) -> tuple[np.ndarray | None, float]:
    """The influences (rows × `queries`) of rows that have one, and the share of all rows that was read for them.

    The whole where that is at most `_SAMPLE` numbers, else about so many, from evenly spaced places in evenly spaced
    parts. None where there are no scores.
    """
    names = run.part_names()
    if not (run.has_scores and queries and names):
        return None, 0.0
    counts = run.record.counts
    assert counts is not None  # of a run that is done
    share = min(1.0, _SAMPLE / max(1, counts.rows * counts.queries))
    chosen = names
    if share < 1:  # of few parts a little each: a part's rows are neighbours
        parts = min(len(names), max(_PLACES, math.ceil(share * len(names))))
        chosen = [names[n * len(names) // parts] for n in range(parts)]
        share *= len(names) / parts
    read, values = 0, [np.empty((0, len(queries)), np.float32)]
    for part in run.parts(chosen, ["influence"], share):
        read += len(part)
        some = matrix(part["influence"])[:, queries]
        values.append(some[np.isfinite(some).all(axis=1)])
    return np.concatenate(values), read / max(1, counts.rows)


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
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / 60 or 1.0
    edges = np.arange(math.floor(low / width), max(math.ceil(high / width), 1) + 1) * width  # zero is an edge
    heights, _ = np.histogram(values, edges)
    with styled(name):
        figure = Figure(figsize=(9, 1.9))
        axes = figure.add_axes((0.075, 0.25, 0.915, 0.6))  # a layout engine takes as long again as the drawing
        axes.bar(
            edges[:-1],
            heights,
            width * 0.9,
            align="edge",
            color=[HELPFUL if e < -width / 2 else HARMFUL for e in edges[:-1]],
        )
        axes.set_yscale("log", subs=[])  # no minor ticks
        axes.set_ylim(bottom=0.6)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("influence", color=INK)
        axes.set_title("← helpful", loc="left", color=HELPFUL, fontsize=9)
        axes.set_title("harmful →", loc="right", color=HARMFUL, fontsize=9)
        axes.set_ylabel("rows", color=INK)
        axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}")
        axes.xaxis.set_major_formatter(lambda tick, _: "0" if abs(tick) < width / 1e3 else signed(tick))
        axes.locator_params(axis="x", nbins=6)
        plain(axes)
        return inline_svg(figure, f"histogram of the influences on {name}")
