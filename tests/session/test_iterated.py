"""Methods of many sweeps that are cut off, and taken up from what is there; and exact over a projected index."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import datainf_ray
from datainf_ray.config import load_config
from datainf_ray.influence import exact as module
from datainf_ray.influence.block import Block
from datainf_ray.influence.projection import Projector
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from tests import reference, tiny
from tests.interrupting import Interrupter
from tests.runs_of import attribute, scores, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

CHUNKS = 5  # of the 40 training rows


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "quiet", method={"name": "lissa", "iterations": 3})
    config["cluster"] = {**config["cluster"], "checkpoint_seconds": 0}
    return config


def cut_off(config: dict[str, Any], output: Path, sweep: str, chunks: int) -> Path:
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(load_config(config, output=str(output))), Interrupter(sweep, chunks))
    return output


def taken_up(config: dict[str, Any], output: Path) -> tuple[dict[str, bytes], list[str]]:
    """The tables of a run that is taken up, and what it says meanwhile."""
    watcher = Interrupter()
    run = execute(prepare(load_config(config, output=str(output))), watcher)
    assert not (output / "checkpoints").exists()
    return tables(run), watcher.said


@pytest.mark.slow
def test_lissa_that_is_killed_goes_on_with_the_same_bits(tmp_path: Path, config: dict[str, Any]) -> None:
    """While the largest eigenvalue is estimated, and in the series."""
    quiet = attribute(config)
    unsolved = quiet.summary()["unsolved"]
    assert unsolved.startswith("the series is far from its limit")
    assert f"{unsolved[1:]}." in html.unescape((tmp_path / "quiet" / "report.html").read_text())
    cases = [("power", CHUNKS + 2, "power"), ("iteration", 2 * CHUNKS + 3, "solve-0")]
    for number, (sweep, chunks, name) in enumerate(cases):
        output = cut_off(config, tmp_path / f"cut-{number}", sweep, chunks)
        found, said = taken_up({**config, "gradients": "recompute"}, output)
        assert found == tables(quiet)
        step = (chunks - 1) // CHUNKS
        assert f"{name}: taken up from an earlier attempt, behind step {step}" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lissa", "exact"])
def test_a_step_that_is_damaged_is_computed_again(
    tmp_path: Path, config: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says how far the iterations are, and what they have left; exact by conjugate gradient."""
    monkeypatch.setattr(module, "SIDE", 4)
    config["method"] = {"name": method, **({"iterations": 3, "scale": 60.0} if method == "lissa" else {})}
    quiet = tables(attribute(config))
    before = cut_off(config, tmp_path / "before", "iteration", CHUNKS + 1)
    cut = cut_off(config, tmp_path / "cut", "iteration", 2 * CHUNKS + 1)
    index = "checkpoints/solve-0.json"
    said = json.loads((cut / index).read_text())["value"]
    assert said["step"] == 2
    state = next(name for names in said["files"].values() for name in names)
    damages = [(index, "flipped"), (state, "half"), (state, "gone"), (state, "earlier")]
    for number, (name, damage) in enumerate(damages if method == "lissa" else damages[-1:]):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(cut, copy)
        harm(copy / name, damage, before / name.replace("solve-0-2", "solve-0-1"))
        found, lines = taken_up(config, copy)
        assert found == quiet, damage
        assert any(line.startswith("solve-0: computed again, because ") for line in lines), lines


def harm(file: Path, damage: str, earlier: Path) -> None:
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "earlier":  # the same state behind another step, whole
        shutil.copy(earlier, file)
    else:
        data[len(data) // 2] ^= damage == "flipped"
        file.write_bytes(data[: len(data) // 2] if damage == "half" else data)


def plain(name: str) -> str:
    """A block's name without what PEFT adds to it."""
    return name.replace(".default.", ".").removeprefix("base_model.model.")


def test_exact_answers_from_a_projected_index(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    """With the damping of the gradients as they are, and the curvature of those that are in the index."""
    side = 6
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"name": "exact"})
    run = attribute(config, index=True, index_projection=side, index_dtype="float32")
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = datainf_ray.query(run.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    peft = reference.load(tiny_llama)
    g, v = (
        reference.gradients(peft, reference.encode(tiny_llama, str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )
    assert reference.worst(scores(run), reference.exact(g, v)) < 1e-4
    want = torch.zeros((), dtype=torch.float64)
    smaller = 0
    for row in run.blocks().to_pylist():
        name = next(one for one in g if plain(one) == plain(row["block"]))
        projector = Projector([Block(row["block"], row["kind"], tuple(row["shape"]))], side, 0)
        rows, queries = (projector.apply(row["block"], x[name]).double() for x in (g, v))
        smaller += rows.shape[1] < g[name].shape[1]
        matrix = rows.T @ rows / len(rows) + row["damping"] * torch.eye(rows.shape[1]).double()
        want = want - rows @ matrix.inverse() @ queries.T
    assert smaller == len(g)
    assert reference.worst(scores(answers), want) < 1e-4
    assert answers.summary()["curvature"]["way"] == "direct"
