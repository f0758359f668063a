"""What was solved goes down before it is used: the run goes on from what is written, with the same bits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from datainf_ray.cluster import gather
from datainf_ray.cluster.reduce import StateLostError, compute
from datainf_ray.cluster.sums import Sums, Tally, got
from datainf_ray.cluster.sweep import ClusterSweeps
from datainf_ray.config import load_config
from datainf_ray.influence.folds import Curvature
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from datainf_ray.watch.lines import Lines
from tests import tiny
from tests.runs_of import attribute, tables

pytestmark = [pytest.mark.cluster, pytest.mark.fresh_workers, pytest.mark.usefixtures("local_ray")]


def lost(references: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same objects, owned by a process that dies."""

    class Owner:
        def copies(self, *values: Any) -> list[Any]:
            return [ray.put(value) for value in values]

    owner = ray.remote(num_cpus=0)(Owner).remote()
    copies = ray.get(owner.copies.remote(*references))
    ray.kill(owner)
    while not is_gone(copies[0]):  # it is there until the process is gone
        time.sleep(0.1)
    return tuple(copies)


def is_gone(reference: Any) -> bool:
    try:
        ray.get(reference)
    except ray.exceptions.ObjectLostError:
        return True
    return False


@pytest.mark.slow
def test_a_lost_ihvp_is_read_again(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", gradients="recompute")
    quiet = attribute(config, output=str(tmp_path / "quiet"))
    sweep = ClusterSweeps.run
    names: list[str] = []

    def run(self: ClusterSweeps, name: str, *values: Any, **inputs: Any) -> Any:
        names.append(name)
        if name == "scores" and names.count(name) == 1:
            inputs["vectors"] = lost(inputs["vectors"])
        return sweep(self, name, *values, **inputs)

    monkeypatch.setattr(ClusterSweeps, "run", run)
    disturbed = execute(prepare(load_config(config)), Lines())
    assert names == ["queries", "pilot", "curvature", "scores", "scores"]
    assert "going on from the last checkpoint" in capsys.readouterr().err
    assert tables(disturbed) == tables(quiet)
    assert [s["name"] for s in disturbed.summary()["sweeps"]] == ["queries", "pilot", "curvature", "scores"]


@pytest.mark.slow
def test_a_part_of_the_examples_is_written_again_where_ray_lost_it(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    tries: list[Any] = []

    def computed(*values: Any) -> Any:
        tries.append(compute(*values))
        return lost((tries[0],))[0] if len(tries) == 1 else tries[-1]

    monkeypatch.setattr(gather, "compute", computed)
    run = attribute(config)
    assert len(tries) == 2
    assert run.examples()["row"].to_pylist() == list(range(40))


def test_a_sum_whose_worker_died_is_computed_again() -> None:
    class Dies:
        def shard(self) -> Any:
            os._exit(1)

    reference = ray.remote(num_cpus=0)(Dies).remote().shard.remote()
    with pytest.raises(StateLostError, match="died"):
        got([reference])
    sums = Sums(Curvature, 1, [100], False, None, "sums", 0)
    sums.add(0, [reference], Tally())
    assert sums.settle() == {0}
