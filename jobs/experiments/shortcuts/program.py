"""What the shortcuts cost: how DataInf's influences change with what makes it cheaper, and how much cheaper it gets.

Whole runs, as a user makes them, on one fine-tuned model. All are compared with the run in float32 over all rows, whose
gradients are computed in both sweeps: by correlation, query by query, and by the seconds of computing in their sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray import Run, attribute, query
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import matrix
from experiments.common import language
from experiments.common.attribution import with_adapter
from experiments.common.figures import dots
from experiments.common.finetune import Recipe, fine_tune
from experiments.common.statistics import pearson, spearman
from experiments.common.tables import markdown

FULL = "full float32"


def run(config: Mapping[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """The experiment's files, by name: its records, the table, the figure. `directory` is a local one."""
    folder = Path(directory.url).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    request = _request(config, folder)
    runs = {FULL: attribute(request, output=str(folder / "runs/full"), gradients="recompute", progress=False)}
    for name, keys in _variants(config).items():
        print(name, flush=True)
        output = str(folder / "runs" / name.replace(" ", "-"))
        if "index_projection" in keys or "index_dtype" in keys:
            made = attribute(request, output=output, index=True, progress=False, **keys)
            asked = request["queries"]
            runs[name] = query(made.url, queries=dict(asked), output=f"{output}-answers", progress=False)
        else:
            runs[name] = attribute(request, output=output, progress=False, **{"gradients": "recompute", **keys})
    records = pa.Table.from_pylist([_compared(name, one, runs[FULL]) for name, one in runs.items()])
    return {"results.parquet": records, "table.md": table(records), "figure.svg": figure(records)}


def _variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, the keys that a run has beside those of all."""
    found: dict[str, dict[str, Any]] = {"gradients kept": {"gradients": "keep"}}
    found |= {f"{n} curvature rows": {"method.curvature_rows": n} for n in config["curvature_rows"]}
    found |= {f"{dtype} model": {"model.dtype": dtype} for dtype in config["dtypes"]}
    found |= {f"index in {dtype}": {"index_dtype": dtype} for dtype in ("float32", "float16")}
    found |= {f"index of {side} × {side}": {"index_projection": side} for side in config["projections"]}
    return found


def _request(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    recipe = Recipe(**config["recipe"])
    files = [
        language.write(language.rows(f"{config['data']}/{name}.parquet", each, 0), folder / f"{name}.parquet")
        for name, each in (("train", config["each"]), ("test", config["queries_each"]))
    ]
    base = language.base_of(config["model"], folder / "base")
    request = language.request(base, files[0], files[1], folder)
    (adapter,) = fine_tune(request, recipe, 0, folder / "adapters", [recipe.epochs])
    return {**with_adapter(request, adapter), "cluster": {"max_workers": config["workers"]}}


def _compared(name: str, one: Run, full: Run) -> dict[str, Any]:
    found, right = (matrix(r.scores()["influence"]) for r in (one, full))
    every = range(found.shape[1])
    sweeps = [s for s in one.summary()["sweeps"] if s["name"] != "queries"]
    return {
        "name": name,
        "pearson": float(np.mean([pearson(found[:, q], right[:, q]) for q in every])),
        "spearman": float(np.mean([spearman(found[:, q], right[:, q]) for q in every])),
        "worst": float(np.min([spearman(found[:, q], right[:, q]) for q in every])),
        "seconds": sum(s["seconds"] for s in sweeps),
    }


def table(records: pa.Table) -> str:
    """A line a run: its rank correlation with the full one, the mean over queries and the worst; its time."""
    rows = records.to_pylist()
    whole = next(r["seconds"] for r in rows if r["name"] == FULL)
    return markdown(
        [
            {
                "run": r["name"],
                "correlation": f"{r['pearson']:.4f}",
                "rank correlation": f"{r['spearman']:.4f}",
                "worst query": f"{r['worst']:.4f}",
                "computing": f"{r['seconds']:.1f} s ({r['seconds'] / whole:.2f})",
            }
            for r in rows
        ]
    )


def figure(records: pa.Table) -> bytes:
    """For every run but the full one, what it loses of the rank correlation, and its time."""
    rows = records.to_pylist()
    whole = next(r["seconds"] for r in rows if r["name"] == FULL)
    others = [r for r in rows if r["name"] != FULL]
    return dots(
        [r["name"] for r in others],
        {
            "1 − rank correlation": [max(1 - r["spearman"], 1e-7) for r in others],
            "computing, of the full run's": [r["seconds"] / whole for r in others],
        },
    )
