"""The files of a Ray that a run has started are removed when all went well; those of any other Ray are not touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.machines import RAY_SETTINGS

from datainf_ray.cluster.release import remove_session
from tests import tiny
from tests.runs_of import COMMAND


@pytest.fixture
def place() -> Iterator[Path]:
    """Where Ray puts its files: a short path, because sockets lie below it. Another Ray's are there already."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    (folder / "ray" / "session_of_another" / "logs").mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def _run(place: Path, config: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = place / "c.yaml"
    path.write_text(json.dumps(config))
    environment = os.environ | RAY_SETTINGS | {"RAY_TMPDIR": str(place)}
    command = [*COMMAND, "run", str(path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_files_of_a_local_ray_go_when_all_went_well(
    tmp_path: Path, tiny_llama: dict[str, Any], place: Path
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    failed = _run(place, config, "--set=cluster.start_timeout=0.01")
    assert failed.returncode == 1, failed.stderr
    left = {p.name for p in (place / "ray").iterdir() if p.name.startswith("session_")}
    assert len(left - {"session_of_another", "session_latest"}) == 1  # its logs may say why
    done = _run(place, config)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (place / "ray").iterdir() if p.name.startswith("session_")} == left - {"session_latest"}


def test_the_link_to_the_last_session_goes_only_with_its_own(tmp_path: Path) -> None:
    ours, theirs, latest = tmp_path / "session_1", tmp_path / "session_2", tmp_path / "session_latest"
    ours.mkdir()
    theirs.mkdir()
    latest.symlink_to(theirs)
    remove_session(ours)
    assert not ours.exists()
    assert latest.resolve() == theirs
    remove_session(theirs)
    assert list(tmp_path.iterdir()) == []
    remove_session(None)
