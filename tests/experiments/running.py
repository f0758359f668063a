"""An experiment, as its command runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def run_experiment(name: str, output: Path, config: str | None = None, **changed: Any) -> dict[str, pa.Table]:
    import experiment

    assignments = [f"--set={key}={json.dumps(value)}" for key, value in changed.items()]
    experiment.main([name, "--output", str(output), *assignments, *([f"--config={config}"] if config else [])])
    return {path.stem: pq.read_table(path) for path in output.glob("*.parquet")}
