"""What a run is taken up from is its own and as it was written; all else is computed again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import datainf_ray
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from tests import tiny
from tests.interrupting import Interrupter
from tests.runs_of import attribute, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    return tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", gradients="recompute", index=True)


@pytest.fixture
def cut(config: dict[str, Any]) -> Path:
    """A run that was interrupted when three of its five chunks were scored."""
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(load_config(config)), Interrupter("scores", 3))
    return Path(config["output"])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "half", "empty", "gone", "exchanged"])
def test_damaged_checkpoints_are_computed_again(tmp_path: Path, config: dict[str, Any], cut: Path, damage: str) -> None:
    """Every file of them, each kind by itself."""
    files = [p for p in (cut / "checkpoints").rglob("*") if p.is_file()]
    kinds = {p.parent.name + p.suffix + p.name[:3]: p for p in files}
    assert len(kinds) >= 8
    for number, file in enumerate(kinds.values()):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(cut, copy)
        harmed = copy / file.relative_to(cut)
        if damage == "gone":
            harmed.unlink()
        elif damage == "exchanged":
            shutil.copy(next(p for p in files if p.suffix == file.suffix and p != file), harmed)
        elif damage == "flipped":
            flip(harmed)
        else:
            harmed.write_bytes(harmed.read_bytes()[: 0 if damage == "empty" else harmed.stat().st_size // 2])
    quiet = tables(attribute(config, output=str(tmp_path / "quiet")))
    for number, file in enumerate(kinds.values()):
        watcher = Interrupter()
        run = execute(prepare(load_config(config, output=str(tmp_path / f"copy-{number}"))), watcher)
        assert tables(run) == quiet, file
        assert not (tmp_path / f"copy-{number}" / "checkpoints").exists()


def test_a_chunk_that_is_damaged_behind_the_sweep_is_scored_again(tmp_path: Path, config: dict[str, Any]) -> None:
    """When its part is written, and the sums of the scores have it already."""

    class Harming(Interrupter):
        def end(self) -> None:
            if self.now == "scores" and not any("scored again" in line for line in self.said):
                flip(tmp_path / "run" / "checkpoints" / "scores" / "chunk-000002.parquet")

    watcher = Harming()
    run = execute(prepare(load_config(config)), watcher)
    assert any("chunk-000002.parquet" in line and "its rows are scored again" in line for line in watcher.said)
    assert tables(run) == tables(attribute(config, output=str(tmp_path / "quiet")))


@pytest.mark.slow
def test_parts_of_the_index_that_are_damaged_meanwhile_are_written_again(
    tmp_path: Path, config: dict[str, Any], cut: Path
) -> None:
    for part in (cut / "index").glob("part-*"):
        flip(part)
    for chunk in (cut / "checkpoints").rglob("*"):  # so that their gradients are taken again
        if chunk.is_file() and ("scores" in chunk.name or chunk.parent.name.startswith("scores")):
            chunk.unlink()
    run = attribute(config)
    quiet = attribute(config, output=str(tmp_path / "quiet"))
    for part in (Path(quiet.url) / "index").glob("part-*"):
        assert (cut / "index" / part.name).read_bytes() == part.read_bytes()
    assert run.state == "done"


@pytest.mark.slow
def test_another_models_run_takes_nothing_of_it(tmp_path: Path, config: dict[str, Any], cut: Path) -> None:
    """Even where run.json alone was taken away, or put in from another run."""
    shutil.copytree(tmp_path / "adapter", tmp_path / "other")
    file = tmp_path / "other" / "adapter_model.safetensors"
    save_file({name: value * 1.5 for name, value in load_file(file).items()}, file)
    other = {**config, "model": {**config["model"], "adapter": str(tmp_path / "other")}}
    quiet = attribute(other, output=str(tmp_path / "quiet"))
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").unlink()
    with pytest.raises(RequestError, match=r"run: is not empty and holds no run \(no run.json\): checkpoints"):
        attribute(other)
    shutil.rmtree(cut / "index")
    job = prepare(load_config(other, output=str(tmp_path / "fresh")))
    forged = {**record, "fingerprint": job.fingerprint, "identity": job.identity}
    (cut / "run.json").write_text(json.dumps(forged))
    with pytest.raises(RunFailedError, match="loaded has other weights than the workers before it"):
        attribute(other)
    (cut / "run.json").write_text(json.dumps({**forged, "weights": {}}))  # as in an earlier version
    run = attribute(other)
    assert tables(run) == tables(quiet)


def test_files_of_others_among_the_checkpoints_stay(config: dict[str, Any], cut: Path) -> None:
    theirs = [cut / "checkpoints" / "last" / "adapter_model.safetensors", cut / "checkpoints" / "notes.txt",
              cut / "examples" / ".mine.tmp", cut / ".mine.tmp"]  # fmt: skip
    for file in theirs:
        file.parent.mkdir(exist_ok=True)
        file.write_text("theirs")
    assert attribute(config).state == "done"
    assert [file.read_text() for file in theirs] == ["theirs"] * len(theirs)
    assert sorted(p for p in (cut / "checkpoints").rglob("*") if p.is_file()) == sorted(theirs[:2])


def test_a_run_that_scores_no_row_has_failed(tmp_path: Path, config: dict[str, Any]) -> None:
    """Each row of the corpus has a word whose embedding is no number; the queries do not."""
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][len(tiny.SPECIAL) + 7] = float("nan")
    save_file(weights, file, {"format": "pt"})
    for name, word in (("train", "w7"), ("queries", "w8")):
        rows = [{"name": str(k), "prompt": word, "completion": f" {word} w9"} for k in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # and has again
        with pytest.raises(RunFailedError, match=r"^none of the 20 rows has a score: 0: nonfinite"):
            attribute(config)
    assert datainf_ray.open_run(config["output"]).state == "failed"
