"""`datainf check`: what would stop a run is found, named, and does not hide the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import datainf_ray
from datainf_ray.cli import app
from datainf_ray.common import versions
from datainf_ray.session.checkup import Finding
from tests import tiny

pytestmark = [pytest.mark.cluster, pytest.mark.fresh_workers, pytest.mark.usefixtures("local_ray")]

ALL = ["request", "output", "cluster", "packages", "worker", "storage", "one chunk"]


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    return tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", index=True)


def look(config: dict[str, Any], **overrides: Any) -> dict[str, Finding]:
    findings = datainf_ray.check(config, **overrides)
    assert [finding.name for finding in findings] == ALL
    return {finding.name: finding for finding in findings}


def test_all_is_well(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "c.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    found = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert list(found) == ALL
    assert all(entry["ok"] for entry in found.values())
    assert "40 training rows, 4 queries" in found["request"]["detail"]
    assert "8 blocks with all 896 trainable parameters" in found["request"]["detail"]
    assert "1 node, 2 CPUs, 0 GPUs; up to 1 worker of 1 CPU" in found["cluster"]["detail"]
    assert "gradients for whole batches, cosine 1.000000 to autograd's" in found["worker"]["detail"]
    assert "12 of them tried" in found["storage"]["detail"]
    assert "tokens/s" in found["one chunk"]["detail"]
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file()]  # nothing that stays

    table = CliRunner().invoke(app, ["check", str(tmp_path / "c.yaml"), "--set", "train.path=nowhere"])
    assert table.exit_code == 2
    assert "✗  request" in table.stdout
    assert "–  one chunk" in table.stdout


def test_random_rows_of_which_none_can_be_used_are_told(config: dict[str, Any], tmp_path: Path) -> None:
    """The rows that were looked at are fine, and those that a worker is timed on are not."""
    good, bad = {"prompt": "w1", "completion": "w2"}, {"prompt": "w1", "completion": None}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [good, *[bad] * 20_000]))
    found = look(config, **{"train.id": None})
    assert "63 cannot be used (the first is train.jsonl#1: unreadable: completion is null)" in found["request"].detail
    assert found["one chunk"].status == 1
    assert "none of 128 random training rows can be used; the first is train.jsonl#" in found["one chunk"].detail


def test_a_wrong_request_is_all_that_is_looked_at(config: dict[str, Any]) -> None:
    found = look(config, **{"model.adapter": config["model"]["base"]})
    assert found["request"].status == 2
    assert "no adapter_config.json there" in found["request"].detail
    assert [finding.status for finding in found.values()] == [2, *[None] * 6]


@pytest.mark.slow
def test_an_output_that_cannot_be_written_does_not_hide_the_cluster(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = look(config, output=str(tmp_path / "file" / "run"), index=None)
    assert [name for name, finding in found.items() if not finding.ok] == ["output", "storage"]
    assert "cannot be written" in found["output"].detail
    assert found["storage"].detail.startswith("output: ")  # the worker's own words


def test_other_packages_on_the_nodes_are_named(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__version__", "9.9")
    found = look(config)
    assert found["packages"].status == 1
    assert f"datainf-ray {versions_of_a_node()}, here 9.9" in found["packages"].detail
    assert found["worker"].status is None


def versions_of_a_node() -> str:
    import ray

    return str(ray.get(ray.remote(versions.versions).remote())["datainf-ray"])


def test_a_worker_that_the_cluster_has_no_room_for(config: dict[str, Any]) -> None:
    found = look(config, **{"cluster.max_workers": None, "cluster.cpus_per_worker": 64})
    assert found["cluster"].status == 2
    assert "no node has room for a worker of 64 CPUs" in found["cluster"].detail


def test_rows_that_a_worker_cannot_read_are_found(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there for the driver, and not where the worker looks."""
    from datainf_ray.cluster import hiring
    from datainf_ray.cluster.worker import Worker

    class Elsewhere(Worker):
        def load(self, spec: Any, name: str) -> Any:
            info = super().load(spec, name)
            for file in spec.corpora["train"].files:
                Path(file.path).rename(f"{file.path}.gone")
            return info

    monkeypatch.setattr(hiring, "Worker", Elsewhere)
    found = look(config)
    assert found["worker"].ok
    assert not found["storage"].ok
    assert "train.jsonl" in found["storage"].detail
