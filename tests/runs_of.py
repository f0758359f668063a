"""What tests ask of a run: to be done, its scores as a tensor, its tables as bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import datainf_ray
from datainf_ray.cli import main
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import matrix, table_bytes

#: `datainf`, in a process of its own.
COMMAND = (sys.executable, "-c", "from datainf_ray.cli import main; main()")


def attribute(config: dict[str, Any], **overrides: Any) -> datainf_ray.Run:
    return datainf_ray.attribute(config, progress=False, **overrides)


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The status of `datainf` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["datainf", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def scores(run: datainf_ray.Run) -> torch.Tensor:
    """Rows × queries."""
    return torch.from_numpy(matrix(run.scores()["influence"]))


def write_table(directory: RunDirectory, name: str, table: pa.Table) -> None:
    """Write a Parquet file as runs do."""
    directory.write(name, table_bytes(table))


def tables(run: datainf_ray.Run | Path) -> dict[str, bytes]:
    """Every Parquet file of a run, by its name."""
    root = run if isinstance(run, Path) else Path(run.url)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}
