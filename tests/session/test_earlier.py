"""A run that an earlier version left behind, which made other tokens of the same rows, is left as it is.

`earlier/` is what commit 76aae44 left of a run of 24 rows (chunks of 8) and 2 queries on a tiny Llama, which Ctrl-C
ended after two chunks of its scores: its run.json, with FOLDER for the place.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from tests import tiny

MADE = Path(__file__).parent / "earlier"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The request of the run, at a place of this test's own."""
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    document = tmp_path / "run" / "run.json"
    document.write_text(document.read_text().replace("FOLDER", str(tmp_path)))
    model = {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter"), "task": "causal-lm"}
    return tiny.configuration(tmp_path, model, tmp_path / "run", index=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "an earlier version made it, and other tokens of the same rows"),
        ({"method.damping": 0.3}, "method.damping is 0.1 there and 0.3 here"),
        ({"train.id": None}, 'train.id is "name" there and null here'),
        ({"seed": 1}, "seed is 0 there and 1 here"),
    ],
)
def test_it_is_another_run(config: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    document = Path(config["output"]) / "run.json"
    before = document.read_bytes()
    with pytest.raises(RequestError, match=f"holds another run: {said}"):
        prepare(load_config(config, **changes))
    assert document.read_bytes() == before
    assert [path.name for path in document.parent.iterdir()] == ["run.json"]
