"""Figures 1 and 5 of the paper: how well each method's influences go with the exact ones, as the rank grows.

A cell is one fine-tune: a GLUE task, a rank, a share of flipped labels, a seed. Its influences are those of every
training row on the mean validation loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray.runs.directory import RunDirectory
from experiments.common import glue
from experiments.common.attribution import Attribution, Scored, with_adapter
from experiments.common.cells import Kept, compute
from experiments.common.figures import STYLES, axes, save
from experiments.common.finetune import Recipe, fine_tune
from experiments.common.statistics import mean_interval, pearson, spearman, told
from experiments.common.tables import markdown

#: What is compared with exact, and how it is asked for. The paper's LiSSA has no scale, which is one of 1.
METHODS: dict[str, dict[str, Any]] = {
    "datainf": {"method": "datainf"},
    "lissa": {"method": "lissa"},
    "lissa, scale 1": {"method": "lissa", "scale": 1.0},
    "hessian-free": {"method": "hessian-free"},
}


def run(config: Mapping[str, Any], directory: RunDirectory) -> dict[str, bytes | str]:
    """The experiment's files, by name: its records, the table, the figure."""
    cells = {
        f"{task}-noise{round(100 * noise):02d}-r{rank}-seed{seed:02d}": {
            **{"task": task, "noise": noise, "rank": rank, "seed": seed},
        }
        for seed in range(config["seeds"])  # the first seed of all first: a run that is cut off has a whole figure
        for task in config["tasks"]
        for noise in config["noise"]
        for rank in config["ranks"]
    }
    common = {key: config[key] for key in ("model", "data", "rows", "validation_rows", "recipe")}
    records = compute(directory, cell, cells, common, config["cpus"], config["gpus"])
    return {"results.parquet": records, "table.md": table(records), "figure.svg": figure(records)}


def cell(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """Correlations of one fine-tune's influences with the exact ones, a record a method."""
    recipe = Recipe(rank=values["rank"], **values["recipe"])
    with kept.workspace() as folder:
        request = glue.prepared(values, folder)
        (adapter,) = fine_tune(request, recipe, values["seed"], folder / "adapters", [recipe.epochs])
        kept.keep(folder)
        attribution = Attribution(with_adapter(request, adapter))
        exact = attribution.by("exact")
        seen = {
            "exact_seconds": exact.seconds,
            "gradient_seconds": attribution.train.seconds,
            "train_loss": float(attribution.losses.mean()),
            "validation_loss": float(attribution.queries.losses.mean()),
        }
        return [{"method": name, **_compared(attribution, exact, asked), **seen} for name, asked in METHODS.items()]


def _compared(attribution: Attribution, exact: Scored, asked: Mapping[str, Any]) -> dict[str, float | None]:
    """How a method's influences go with the exact ones; nothing where it does not converge."""
    try:
        scored = attribution.by(**asked)
    except FloatingPointError:
        return {"pearson": None, "spearman": None, "seconds": None}
    one, other = scored.influence[:, 0], exact.influence[:, 0]
    return {"pearson": pearson(one, other), "spearman": spearman(one, other), "seconds": scored.seconds}


def table(records: pa.Table) -> str:
    """A line for every task, share of flipped labels and rank: each method's mean correlation with exact ± 95 %."""
    lines = []
    for (task, noise, rank), some in _groups(records):
        line: dict[str, Any] = {"task": task, "flipped": f"{noise:.0%}", "rank": rank}
        for method in METHODS:
            values = [r["pearson"] for r in some if r["method"] == method]
            there = [value for value in values if value is not None]
            line[method] = told(there, 3) if there else "—"
            if len(there) < len(values):
                line[method] += f" ({len(values) - len(there)} did not converge)"
        line["seeds"] = len({r["seed"] for r in some})
        lines.append(line)
    return markdown(lines)


def _groups(records: pa.Table) -> list[tuple[tuple[str, float, int], list[dict[str, Any]]]]:
    found: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for record in records.to_pylist():
        found.setdefault((record["task"], record["noise"], record["rank"]), []).append(record)
    return sorted(found.items())


def figure(records: pa.Table) -> bytes:
    """Correlation over rank: a panel for every task and share of flipped labels."""
    groups = _groups(records)
    panels = sorted({key[:2] for key, _ in groups})
    drawing, places = axes(len(panels), "rank of LoRA", "correlation with exact")
    for (task, noise), place in zip(panels, places, strict=True):
        ranks = [key[2] for key, _ in groups if key[:2] == (task, noise)]
        for method in METHODS:
            each = [
                mean_interval([r["pearson"] for r in some if r["method"] == method and r["pearson"] is not None])
                for key, some in groups
                if key[:2] == (task, noise)
            ]
            means, halves = np.array(each).T
            place.errorbar(ranks, means, halves, label=method, marker="o", capsize=3, **STYLES[method])
        place.set_xscale("log", base=2)
        place.set_xticks(ranks, [str(rank) for rank in ranks])
        place.set_title(f"{task}, {noise:.0%} flipped")
    return save(drawing, places)
