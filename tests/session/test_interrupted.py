"""A run that an earlier version left behind, whose checkpoints have no checksums, is done from its beginning.

`interrupted/` is what commit 76aae44 left of a run of 24 rows (chunks of 8) and 2 queries on a tiny Llama, which Ctrl-C
ended after two chunks of its scores. FOLDER stands for the place. Its events are left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import open_index
from datainf_ray.runs.schemas import matrix
from datainf_ray.session.execute import execute
from datainf_ray.watch.progress import Silent
from tests import tiny
from tests.runs_of import attribute

MADE = Path(__file__).parent / "interrupted"


class Hearing(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The request of the run, at a place of this test's own."""
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    document = tmp_path / "run" / "run.json"
    document.write_text(document.read_text().replace("FOLDER", str(tmp_path)))
    model = {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter"), "task": "causal-lm"}
    return tiny.configuration(tmp_path, model, tmp_path / "run", index=True)


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_run_of_the_version_before_is_taken_up(tmp_path: Path, config: dict[str, Any]) -> None:
    watcher = Hearing()
    run = execute(prepare(load_config(config)), watcher)
    assert not any("taken up" in line for line in watcher.said)  # its files do not say whose they are
    assert sum("has no checksum: it is damaged, or no file of this run" in line for line in watcher.said) >= 3
    quiet = attribute(config, output=str(tmp_path / "quiet"))
    assert run.state == "done"
    # another machine's rounding is another: not the same bits
    influences = [matrix(it.scores()["influence"]) for it in (run, quiet)]
    np.testing.assert_allclose(*influences, rtol=1e-4, atol=1e-5 * np.abs(influences[1]).max())
    dampings = [it.blocks()["damping"].to_numpy() for it in (run, quiet)]
    np.testing.assert_allclose(*dampings, rtol=1e-4, atol=0)
    assert run.tops().select(["query", "row", "id"]) == quiet.tops().select(["query", "row", "id"])
    assert run.queries().drop_columns("loss") == quiet.queries().drop_columns("loss")
    assert run.examples(["id", "tokens", "status"]) == quiet.examples(["id", "tokens", "status"])
    # it is called what it was called before, and so is its index
    assert run.record.fingerprint.startswith("7676969b")
    index = open_index(RunDirectory(tmp_path / "run" / "index"), 8)
    assert index.fingerprint == run.record.fingerprint
    assert attribute(config).state == "done"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method.damping": 0.3}, "method.damping is 0.1 there and 0.3 here"),
        ({"train.id": None}, 'train.id is "name" there and null here'),
        ({"seed": 1}, "seed is 0 there and 1 here"),
    ],
)
def test_another_request_is_not(config: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=f"holds another run: {said}"):
        prepare(load_config(config, **changes))
