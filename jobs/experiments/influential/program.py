"""Figure 3 of the paper and its table: how well each method finds the rows of a query's own class; by epoch.

A cell is one fine-tune: a model, a set of rows, which tokens have a loss, a seed; with an adapter kept after some of
its epochs. For every query the rows are ordered from the most helpful to the most harmful, and those of its class are
looked for. The paper's recall orders them by the influence's size, whatever its sign: that is `recall_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray.config import load_config
from datainf_ray.evaluation.words import SharedWords
from datainf_ray.request.job import prepare
from datainf_ray.runs.directory import RunDirectory
from experiments.common import language
from experiments.common.attribution import by_epoch, with_adapter
from experiments.common.cells import Kept, compute
from experiments.common.classes import by_query
from experiments.common.figures import STYLES, axes, save
from experiments.common.finetune import Recipe, fine_tune
from experiments.common.statistics import bootstrap, recall
from experiments.common.tables import markdown

METHODS = ("datainf", "exact", "hessian-free", "cosine", "representation")
ALL = (*METHODS, "bm25")


def run(config: Mapping[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """The experiment's files, by name: its records, the table, the figure."""
    cells = {
        f"{model}-{rows}-{targets}-seed{seed}": {"model": model, "rows": rows, "targets": targets, "seed": seed}
        for seed in range(config["seeds"])
        for model in config["models"]
        for rows in config["rows"]
        for targets in config["targets"]
    }
    common = {key: config[key] for key in ("data", "each", "queries_each", "epochs", "models")}
    records = compute(directory, cell, cells, common, config["cpus"], config["gpus"])
    return {"results.parquet": records, "table.md": table(records), "figure.svg": figure(records)}


def cell(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """By epoch, method and query: AUC and recall."""
    model, at, data = values["models"][values["model"]], values["epochs"], f"{values['data']}/{values['rows']}"
    recipe = Recipe(**model["recipe"])
    with kept.workspace() as folder:
        train = language.rows(f"{data}/train.parquet", values["each"], values["seed"])
        queries = language.rows(f"{data}/test.parquet", values["queries_each"], values["seed"])
        files = [language.write(t, folder / f"{n}.parquet") for n, t in (("train", train), ("queries", queries))]
        base = language.base_of(model["base"], folder / "base")
        request = language.request(base, files[0], files[1], folder, values["targets"])
        adapters = fine_tune(request, recipe, values["seed"], folder / "adapters", at)
        kept.keep(folder)
        classes = train["variation"].to_numpy(zero_copy_only=False), queries["variation"].to_numpy(zero_copy_only=False)
        found = []
        for attribution, seen in by_epoch(request, at, adapters):
            for method in METHODS:
                scored = attribution.by(method)
                found += _found(method, scored.influence, *classes, {**seen, "seconds": scored.seconds})
        job = prepare(load_config(with_adapter(request, adapters[0])), writable=False)
        words = SharedWords(job.corpora["train"], job.corpora["queries"], job.groups)
        shared = -np.stack(list(words.scores(range(job.queries))), 1)
        for epoch in at:  # it knows no model
            found += _found("bm25", shared, *classes, {"epoch": epoch, "seconds": 0.0})
        return found


def _found(
    method: str, influence: np.ndarray, train: np.ndarray, queries: np.ndarray, seen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    return by_query(
        method, influence, train, queries, seen, lambda scores, truth: {"recall_size": recall(np.abs(scores), truth)}
    )


def table(records: pa.Table) -> str:
    """A line for every model, set of rows, targets and epoch: each method's AUC and recall, means over queries."""
    lines = []
    for key, some in _groups(records).items():
        line: dict[str, Any] = dict(zip(("model", "rows", "loss on", "epoch"), key, strict=True))
        loss = [r["query_loss"] for r in some if r["query_loss"] is not None]
        line["query loss"] = f"{np.mean(loss):.2f}"
        for method in ALL:
            own = [r for r in some if r["method"] == method]
            area, low, high = bootstrap(np.array([r["auc"] for r in own]))
            line[method] = f"{area:.3f} ({(high - low) / 2:.3f}), {np.mean([r['recall'] for r in own]):.2f}"
        lines.append(line)
    return markdown(lines)


def _groups(records: pa.Table) -> dict[tuple[str, str, str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for r in records.to_pylist():
        found.setdefault((r["model"], r["rows"], r["targets"], r["epoch"]), []).append(r)
    return dict(sorted(found.items()))


def figure(records: pa.Table) -> bytes:
    """Class AUC over epochs: a panel for every model, set of rows and targets."""
    groups = _groups(records)
    panels = sorted({key[:3] for key in groups})
    drawing, places = axes(len(panels), "epochs of the fine-tune", "AUC, the query's class")
    for panel, place in zip(panels, places, strict=True):
        epochs = [key[3] for key in groups if key[:3] == panel]
        for method in ALL:
            found = [[r["auc"] for r in groups[(*panel, e)] if r["method"] == method] for e in epochs]
            each = [bootstrap(np.array(values)) for values in found]
            means, low, high = np.array(each).T
            place.plot(epochs, means, label=method, marker="o", markersize=3, **STYLES[method])
            place.fill_between(epochs, low, high, alpha=0.1, color=STYLES[method]["color"])
        place.set_title(f"{panel[0]}, {panel[1]}\nloss on {panel[2]}", fontsize=9)
    return save(drawing, places)
