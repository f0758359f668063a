"""What tests ask of a run: to be done, its scores as a tensor, its tables as bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import datainf_ray
from datainf_ray.runs.schemas import matrix

#: `datainf`, in a process of its own.
COMMAND = (sys.executable, "-c", "from datainf_ray.cli import main; main()")


def attribute(config: dict[str, Any], **overrides: Any) -> datainf_ray.Run:
    return datainf_ray.attribute(config, progress=False, **overrides)


def scores(run: datainf_ray.Run) -> torch.Tensor:
    """Rows × queries."""
    return torch.from_numpy(matrix(run.scores()["influence"]))


def tables(run: datainf_ray.Run | Path) -> dict[str, bytes]:
    """Every Parquet file of a run, by its name."""
    root = run if isinstance(run, Path) else Path(run.url)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}
