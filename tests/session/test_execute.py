"""What a driver finds when it comes to a run that another one is at work on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.job import Job, prepare
from datainf_ray.runs import lease
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.files import TABLES
from datainf_ray.runs.lease import DRIVER_FILE
from datainf_ray.runs.parts import part_name
from datainf_ray.runs.schemas import examples_schema
from datainf_ray.session.execute import _begun, execute
from datainf_ray.watch.progress import Silent
from tests import tiny
from tests.runs_of import write_table


class Ended(Silent):
    """Ends the test where a computation begins."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        assert "trainable parameters" not in text, "it is computed again"
        self.said.append(text)


class Watched(RunDirectory):
    """A driver elsewhere is at work here. When it is looked at for the third time it has ended."""

    looks = 0
    last: dict[str, Any]  # its last run.json

    def read(self, name: str) -> bytes:
        self.looks += name == DRIVER_FILE
        if name == DRIVER_FILE and self.looks == 3:
            self.write_json("run.json", self.last)
            self.remove(DRIVER_FILE)
        return super().read(name)


@pytest.fixture
def job(tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run on which another driver is at work, which is done, with its report, when it is waited for."""
    monkeypatch.setattr(lease, "BEAT", 0.1)
    job = prepare(load_config(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    directory = Watched(str(tmp_path / "run"))
    record = _begun(job)
    document = record.model_dump(mode="json")
    directory.last = {**document, "state": "done"}
    for name, schema in TABLES.items():
        write_table(directory, name, schema().empty_table())
    write_table(directory, part_name(0), examples_schema(job.queries).empty_table())
    directory.write_json("run.json", {**document, "state": "running"})
    directory.write_json(DRIVER_FILE, {"owner": "other", "host": "elsewhere", "pid": 1, "beat": 0})
    directory.write("report.html", b"")
    return replace(job, directory=directory)


def test_a_driver_that_waited_while_another_finished_computes_nothing(job: Job) -> None:
    watcher = Ended()
    run = execute(job, watcher)
    assert run.state == "done"
    assert "already done" in watcher.said[0]
    assert not job.directory.exists(DRIVER_FILE)


@pytest.mark.parametrize(
    ("scores", "top_k", "refused"), [(True, 7, False), (True, 700, False), (False, 7, False), (False, 700, True)]
)
def test_a_run_that_is_done_answers_for_another_length_of_its_lists(
    tmp_path: Path, tiny_llama: dict[str, Any], scores: bool, top_k: int, refused: bool
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", results={"scores": scores})
    job = prepare(load_config(config))
    directory = job.directory
    directory.write_json("run.json", {**_begun(job).model_dump(mode="json"), "state": "done"})
    tables = {**TABLES, part_name(0): lambda: examples_schema(job.queries)}
    for name, schema in tables.items():
        write_table(directory, name, schema().empty_table())
    directory.write("report.html", b"")

    asked = load_config(config, **{"results.top_k": top_k})
    if refused:
        with pytest.raises(RequestError, match=r"holds another run: results\.top_k is 100 there and 700 here"):
            prepare(asked)
    else:
        watcher = Ended()
        assert execute(prepare(asked), watcher).top_k == 100
        assert watcher.said[1] == "it lists 100 rows a query and side; `datainf top -k` shows others"
    with pytest.raises(RequestError, match=r"method\.damping"):
        prepare(load_config(config, **{"results.top_k": top_k, "method.damping": 0.2}))


def test_a_driver_that_waited_while_another_run_was_made_is_told(job: Job) -> None:
    assert isinstance(job.directory, Watched)
    job.directory.last |= {"fingerprint": "f00", "identity": {**job.identity, "adapter": "f00"}}
    with pytest.raises(RequestError, match="holds another run: the adapter's files are others"):
        execute(job, Ended())
    assert job.directory.read_json("run.json") == job.directory.last
