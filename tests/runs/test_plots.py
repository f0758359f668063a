"""The figures of `run.plot`: what they draw is what the run holds, and all that is written on them is on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from IPython.core.formatters import PNGFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.runs.report.figures import by_value, carried, cumulative, histogram, layer_of, layers
from datainf_ray.session.run import Run

if TYPE_CHECKING:
    from conftest import Made


def whole(figure: Figure) -> list[str]:
    """All that is written on a figure; fails where some of it is beyond its edge."""
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    legend = axes.get_legend()
    there = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    there += [axes.title, axes._left_title, axes._right_title, *(legend.get_texts() if legend else [])]  # type: ignore[attr-defined]
    for text in there:
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        drawn = True
        for axis, labels in ((0, axes.get_xticklabels()), (1, axes.get_yticklabels())):
            low, high = sorted((axes.get_xlim, axes.get_ylim)[axis]())
            drawn = drawn and (text not in labels or low <= text.get_position()[axis] <= high)
        assert inside or not drawn or not text.get_text(), text
    return [text.get_text() for text in there if text.get_text()]


@pytest.mark.parametrize("scale", [1e-5, 5.0, 1e6])
@pytest.mark.parametrize("rows", [3, 200_000])
def test_a_histogram_counts_every_row_and_no_label_is_cut(scale: float, rows: int) -> None:
    """+5.00e-05 was drawn as "+5.00e-" where it stood at the end."""
    values = (np.random.default_rng(0).uniform(-5, 5, rows) * scale).astype(np.float32)
    values[:2] = -5 * scale, 5 * scale
    figure = histogram(values)
    said = whole(figure)
    assert {"influence", "rows", "← helpful", "harmful →"} <= set(said)
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == rows
    helpful = sum(bar.get_height() for bar in axes.patches if bar.get_x() + bar.get_width() / 2 < 0)
    assert helpful == (values < 0).sum()


def test_a_curve_says_what_share_the_first_rows_carry() -> None:
    rows, shares = carried(np.array([4, -9, 1, 3, 0, 2]))
    assert rows.tolist() == [1, 2, 3, 4]
    assert shares.tolist() == [0.4, 0.7, 0.9, 1.0]
    assert [len(each) for each in carried(-np.ones(3))] == [0, 0]
    values = np.random.default_rng(0).normal(size=10_000)
    rows, shares = carried(values)
    assert len(rows) < 500
    strong = np.sort(values[values > 0])[::-1]
    np.testing.assert_allclose(shares, [strong[:k].sum() / strong.sum() for k in rows], rtol=1e-9)
    figure = cumulative(values)
    assert {"the most helpful rows", "the most harmful rows"} <= set(whole(figure))
    whole(cumulative(np.zeros(5)))


def test_layers_are_sums_of_their_blocks() -> None:
    blocks = {
        f"model.layers.{n}.self_attn.{m}.lora_{s}.default.weight": float(n + 1)
        for n in range(12) for m in ("q_proj", "v_proj") for s in "AB"
    }  # fmt: skip
    assert layer_of("model.layers.11.self_attn.q_proj.lora_A.default.weight") == ("11", "q_proj")
    assert layer_of("score.weight") == ("none", "score")
    assert layer_of("h.3.attn.c_attn.lora_B") == ("3", "c_attn")
    figure = layers({**blocks, "score.weight": 7.0}, "mean ‖g‖²")
    said = whole(figure)
    assert {"q_proj", "v_proj", "score", "layer", "mean ‖g‖²", *map(str, range(12)), "none"} <= set(said)
    tops = np.zeros(13)
    for bar in figure.axes[0].patches:
        tops[round(bar.get_x() + 0.4)] += bar.get_height()
    assert tops.tolist() == [4.0 * (n + 1) for n in range(12)] + [7.0]


def test_values_of_a_column_are_sorted_and_hostile_ones_are_text() -> None:
    values = ["a", "$\\frac{x$", "b" * 500, "\u202eevil", None, *[f"v{n}" for n in range(60)]]
    rows = [
        {"value": v, "query": q, "mean": (n - 30) * 1e-5, "low": (n - 31) * 1e-5, "high": None if n == 3 else 0.0,
         "scored": n}
        for q in (None, 1) for n, v in enumerate(values)
    ]  # fmt: skip
    figure = by_value(pa.Table.from_pylist(rows), "source", 1)
    said = whole(figure)
    assert "$\\frac{x$ (1)" in said
    assert "evil (3)" in said
    assert "mean influence on query 1, by source (rows)" in said
    together = whole(by_value(pa.Table.from_pylist(rows), "source", None))
    assert "mean influence on all queries, in root mean squares, by source (rows)" in together
    assert len(figure.axes[0].patches) == 30
    assert [bar.get_width() for bar in figure.axes[0].patches] == sorted(
        bar.get_width() for bar in figure.axes[0].patches
    )
    whole(by_value(pa.Table.from_pylist(rows[:0], pa.table({k: [v] for k, v in rows[0].items()}).schema), "source", 0))


class WithColumns(Run):
    def by(self, column: str) -> pa.Table:
        assert column == "source"
        return pa.table({"value": ["x"], "query": [1], "mean": [1.0], "low": [0.5], "high": [2.0], "scored": [7]})


def test_a_notebook_shows_the_figures_of_a_run(made: Callable[..., Made]) -> None:
    it = made(
        sweeps=[{"name": "scores", "source": "backward", "examples": 200, "tokens": 1, "seconds": 1.0, "workers": 1}]
    )
    run = WithColumns(it.run.directory)
    plots = run.plot
    scored = it.influence[~np.isnan(it.influence[:, 1]), 1]
    assert sum(bar.get_height() for bar in plots.distribution("eval.jsonl#1").axes[0].patches) == len(scored)
    last = plots.cumulative(1).axes[0].lines[0]
    assert last.get_xdata()[-1] == (scored < 0).sum()
    for figure in (plots.distribution(), plots.cumulative(), plots.layers(), plots.by("source", 1)):
        whole(figure)
        assert PNGFormatter()(figure).startswith(b"\x89PNG")
    with pytest.raises(RequestError, match="has no events of workers"):
        plots.timeline()
    with pytest.raises(RequestError, match="query: 9: is not there"):
        plots.distribution(9)
    with pytest.raises(RequestError, match=r"stored no scores"):
        Run(made(url=f"{it.run.url}-2", results={"scores": False}).run.directory).plot.cumulative()


def test_without_matplotlib_the_error_is_one_line_and_nothing_else_needs_it(made: Callable[..., Made]) -> None:
    url = made().run.url
    code = (
        "import sys; sys.modules['matplotlib'] = None\nimport datainf_ray as d\nrun = d.open_run(sys.argv[1])\n"
        "run.top(); run._repr_html_()\ntry: run.plot.distribution()\nexcept d.RequestError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plot: cannot be drawn: ")
    assert done.stdout.endswith("; pip install matplotlib\n")
    assert done.stdout.count("\n") == 1


def test_the_package_gives_runs_that_can_be_drawn(made: Callable[..., Made]) -> None:
    run = datainf_ray.open_run(made().run.url)
    assert isinstance(run.plot.layers(), Figure)
    assert Path(run.url).is_dir()
