"""A chunk's scores that two workers computed with different bits: what the first one wrote is what the run says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.runs.checksums import table_file
from datainf_ray.runs.schemas import matrix, read_parquet
from datainf_ray.session.execute import execute
from datainf_ray.watch.progress import Silent
from tests import tiny

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


class Copies(Silent):
    """Copies a folder when the scoring sweep begins, or when it ends, as files of the run `owner`."""

    def __init__(self, source: Path, target: Path, moment: str, owner: str) -> None:
        self.source, self.target, self.moment, self.owner = source, target, moment, owner
        self.sweep = ""

    def begin(self, sweep: str, rows: int) -> None:
        self.sweep = sweep
        self._copy("begin")

    def end(self) -> None:
        self._copy("end")

    def _copy(self, moment: str) -> None:
        if (self.sweep, moment) == ("scores", self.moment):
            self.target.mkdir(parents=True, exist_ok=True)
            for file in self.source.iterdir():
                table = read_parquet(file.read_bytes())
                (self.target / file.name).write_bytes(table_file(table, self.owner, f"checkpoints/scores/{file.name}"))


@pytest.mark.slow
def test_the_second_of_two_workers_returns_what_the_first_one_wrote(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    """As if a worker on another kind of device, here with another damping, had been quicker with every chunk."""
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    quick = config | {"output": str(tmp_path / "quick"), "method": {"damping": 10.0}}
    aside = tmp_path / "aside"
    job = prepare(load_config(config))
    out = Copies(tmp_path / "quick/checkpoints/scores", aside, "end", job.fingerprint)
    first = execute(prepare(load_config(quick)), out)
    second = execute(job, Copies(aside, tmp_path / "run/checkpoints/scores", "begin", job.fingerprint))
    influence = matrix(second.examples()["influence"])
    np.testing.assert_array_equal(influence, matrix(first.examples()["influence"]))
    queries = second.queries()["query"].to_pylist()
    top = second.tops().to_pylist()
    assert {entry["row"] for entry in top} == set(range(40))
    assert all(entry["influence"] == influence[entry["row"], queries.index(entry["query"])] for entry in top)
