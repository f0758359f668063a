"""Figure 2 of the paper: how well each method finds rows whose label was flipped; by epoch of the fine-tune.

A cell is one fine-tune: a GLUE task and a seed, with an adapter kept after some of its epochs. The influences are those
of the training rows on the mean validation loss: the more harmful a row, the more suspicious. Beside them stand what
costs next to nothing: the row's own loss, the norm of its gradient, its influence on itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import rankdata

from datainf_ray.runs.directory import RunDirectory
from experiments.common import glue
from experiments.common.attribution import Attribution, by_epoch
from experiments.common.cells import Kept, compute
from experiments.common.figures import STYLES, axes, save
from experiments.common.finetune import Recipe, fine_tune
from experiments.common.statistics import auc, mean_interval, told
from experiments.common.tables import markdown

METHODS = ("datainf", "exact", "lissa", "hessian-free", "cosine", "representation")
OTHERS = ("loss", "norm", "self-influence", "loss and datainf")


def run(config: Mapping[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """The experiment's files, by name: its records, the table, the figure."""
    cells = {
        f"{task}-seed{seed:02d}": {"task": task, "seed": seed}
        for seed in range(config["seeds"])
        for task in config["tasks"]
    }
    keys = ("model", "data", "rows", "validation_rows", "noise", "recipe", "epochs")
    common = {key: config[key] for key in keys}
    records = compute(directory, cell, cells, common, config["cpus"], config["gpus"])
    return {"results.parquet": records, "table.md": table(records), "figure.svg": figure(records)}


def cell(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """The AUC of every method after every epoch that is asked for."""
    recipe, at = Recipe(**values["recipe"]), values["epochs"]
    with kept.workspace() as folder:
        request = glue.prepared(values, folder)
        flipped = pq.read_table(folder / "train.parquet", columns=["flipped"])["flipped"].to_numpy()
        adapters = fine_tune(request, recipe, values["seed"], folder / "adapters", at)
        kept.keep(folder)
        found = []
        for attribution, seen in by_epoch(request, at, adapters):
            seen["clean_loss"] = float(attribution.losses[~flipped].mean())
            seen["flipped_loss"] = float(attribution.losses[flipped].mean())
            for method, (scores, seconds) in _suspicions(attribution).items():
                found.append({"method": method, "auc": auc(scores, flipped), "seconds": seconds, **seen})
        return found


def _suspicions(attribution: Attribution) -> dict[str, tuple[np.ndarray, float]]:
    """By method, how suspicious every row is, and the seconds that this took beyond the gradients."""
    found = {}
    for method in METHODS:
        scored = attribution.by(method)
        found[method] = scored.influence[:, 0], scored.seconds
    own = attribution.by("datainf", self_influence=True)
    assert own.selves is not None
    both = rankdata(attribution.losses) + rankdata(found["datainf"][0])
    return found | {
        "loss": (attribution.losses, 0.0),
        "norm": (attribution.norms, 0.0),
        "self-influence": (-own.selves, own.seconds),
        "loss and datainf": (both, found["datainf"][1]),
    }


def table(records: pa.Table) -> str:
    """A line for every task and method: the mean AUC ± 95 % after each epoch, and the seconds beyond the gradients."""
    lines = []
    rows = records.to_pylist()
    for task in sorted({r["task"] for r in rows}):
        for method in (*METHODS, *OTHERS):
            own = [r for r in rows if r["task"] == task and r["method"] == method]
            line: dict[str, Any] = {"task": task, "method": method}
            for epoch in sorted({r["epoch"] for r in own}):
                line[f"epoch {epoch}"] = told([r["auc"] for r in own if r["epoch"] == epoch], 2)
            line["seconds"] = f"{np.median([r['seconds'] for r in own]):.1f}"
            lines.append(line)
    return markdown(lines)


def figure(records: pa.Table) -> bytes:
    """AUC over epochs, a panel a task."""
    rows = records.to_pylist()
    tasks = sorted({r["task"] for r in rows})
    drawing, places = axes(len(tasks), "epochs of the fine-tune", "AUC, flipped labels")
    for task, place in zip(tasks, places, strict=True):
        own = [r for r in rows if r["task"] == task]
        epochs = sorted({r["epoch"] for r in own})
        for method in (*METHODS, *OTHERS):
            each = [mean_interval([r["auc"] for r in own if r["epoch"] == e and r["method"] == method]) for e in epochs]
            means, halves = np.array(each).T
            place.plot(epochs, means, label=method, marker="o", markersize=3, **STYLES[method])
            place.fill_between(epochs, means - halves, means + halves, alpha=0.1, color=STYLES[method]["color"])
        place.set_title(task)
    return save(drawing, places)
