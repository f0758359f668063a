"""Whole runs of the methods beside DataInf, against dense inverses and loops in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datainf_ray
from datainf_ray.config import load_config
from datainf_ray.influence import exact as module
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from tests import reference, tiny
from tests.interrupting import Interrupter
from tests.runs_of import attribute, scores, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def gradients(model: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    peft = reference.load(model)
    rows, queries = (reference.encode(model, str(folder / f"{name}.jsonl")) for name in ("train", "queries"))
    return reference.gradients(peft, rows), reference.gradients(peft, queries)


def rows_for(folder: Path, arch: str, count: int) -> dict[str, Any]:
    labels = 3 if arch == "bert" else None
    tiny.write_rows(folder / "train.jsonl", count, 1, labels)
    tiny.write_rows(folder / "queries.jsonl", 4, 2, labels)
    return tiny.save_model(folder, arch)


@pytest.mark.parametrize(("arch", "rows"), [("llama", 40), ("gpt2", 40), ("bert", 150)])
def test_exact_and_self_influence_equal_the_dense_inverse(tmp_path: Path, arch: str, rows: int) -> None:
    """With fewer rows than a block has entries, and with more."""
    model = rows_for(tmp_path, arch, rows)
    config = tiny.configuration(
        tmp_path, model, tmp_path / "run", method={"name": "exact"}, results={"self_influence": True}
    )
    planned = datainf_ray.plan(config)
    run = attribute(config)
    g, v = gradients(model, tmp_path)
    want = reference.exact(g, v)
    assert reference.worst(scores(run), want) < 1e-4
    np.testing.assert_allclose(
        run.examples()["self_influence"].to_numpy(), reference.self_influence(g, "exact"), rtol=1e-4, atol=0
    )
    assert set(run.examples()["self_influence_error"].to_pylist()) == {0.0}
    assert planned.sweeps == [s["name"] for s in run.summary()["sweeps"]] == ["queries", "products", "scores"]
    curvature = run.summary()["curvature"]
    assert curvature["way"] == "direct"
    assert curvature["matrix_blocks"] + curvature["gram_blocks"] == len(g)
    assert curvature["matrix_blocks"] == sum(x.shape[1] < rows for x in g.values())
    assert max(run.blocks()["residual"].to_pylist()) == curvature["residual"] < 1e-8


@pytest.mark.slow
def test_conjugate_gradient_that_is_killed_goes_on_with_the_same_bits(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment of an iteration; with other workers; from gradients that are kept or not."""
    monkeypatch.setattr(module, "SIDE", 4)  # no block is so small
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "quiet", method={"name": "exact"})
    quiet = attribute(config)
    g, v = gradients(tiny_llama, tmp_path)
    assert reference.worst(scores(quiet), reference.exact(g, v)) < 1e-4
    curvature = quiet.summary()["curvature"]
    assert (curvature["way"], curvature["residual"] < 1e-6) == ("conjugate gradient", True)
    done = [s["name"] for s in quiet.summary()["sweeps"]]
    assert done == ["queries", *["iteration"] * curvature["iterations"], "scores"]
    assert [s["source"] for s in quiet.summary()["sweeps"]] == ["backward"] * 2 + ["object-store"] * (len(done) - 2)

    class Later(Interrupter):
        """Counts the chunks of all iterations."""

    for chunks in (3, 5 * 4 + 2, 5 * 6):
        cut = {**config, "output": str(tmp_path / f"cut-{chunks}"), "gradients": "recompute" if chunks == 3 else "auto"}
        cut["cluster"] = {**config["cluster"], "checkpoint_seconds": 0}
        with pytest.raises(KeyboardInterrupt):
            execute(prepare(load_config(cut)), Later("iteration", chunks))
        watcher = Interrupter()
        again = execute(prepare(load_config(cut, **{"cluster.max_workers": 2})), watcher)
        assert tables(again) == tables(quiet)
        taken = [line for line in watcher.said if "solve-0: taken up" in line]
        assert len(taken) == (0 if chunks == 3 else 1), watcher.said
        assert [s["name"] for s in again.summary()["sweeps"]] == done
        assert not (Path(again.url) / "checkpoints").exists()


def test_lissa_equals_its_recursion(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    method = {"name": "lissa", "iterations": 4, "scale": 50.0}
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method=method)
    planned = datainf_ray.plan(config)
    run = attribute(config)
    g, v = gradients(tiny_llama, tmp_path)
    assert reference.worst(scores(run), reference.lissa(g, v, 4, 50.0)) < 1e-4
    assert planned.sweeps == [s["name"] for s in run.summary()["sweeps"]]
    assert run.summary()["curvature"]["scale"] == [50.0, 50.0]
    limit = {"method.scale": None, "method.damping": 30, "method.iterations": 60}
    own = attribute(config, output=str(tmp_path / "own"), **limit)
    assert reference.worst(scores(own), reference.exact(g, v, 30)) < 1e-4
    residual = own.summary()["curvature"]["residual"]
    assert max(own.blocks()["residual"].to_pylist()) == residual < 1e-4


@pytest.mark.parametrize("method", ["datainf", "hessian-free"])
def test_self_influence_equals_the_formula(tmp_path: Path, tiny_llama: dict[str, Any], method: str) -> None:
    results = {"self_influence": True, "scores": method == "datainf", "blocks": method == "datainf"}
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"name": method}, results=results)
    planned = datainf_ray.plan(config)
    run = attribute(config)
    g, _ = gradients(tiny_llama, tmp_path)
    own = run.examples()["self_influence"].to_numpy()
    np.testing.assert_allclose(own, reference.self_influence(g, method), rtol=1e-4, atol=0)
    assert planned.sweeps == [s["name"] for s in run.summary()["sweeps"]]


def test_a_sampled_curvature_and_an_index_answer_too(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    method = {"name": "exact", "curvature_rows": 20}
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method=method)
    config |= {"index": True, "index_dtype": "float32", "results": {"self_influence": True}}
    run = attribute(config)
    assert run.summary()["curvature"]["rows"] == 20
    assert run.summary()["curvature"]["sampled"]
    whole = attribute(config, output=str(tmp_path / "whole"), **{"method.curvature_rows": None})
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = datainf_ray.query(whole.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    assert reference.worst(scores(answers), scores(whole).double()) < 1e-5
    assert answers.summary()["curvature"]["way"] == "direct"


@pytest.mark.parametrize("method", ["datainf", "exact", "hessian-free", "cosine"])
def test_one_row_is_a_corpus(tmp_path: Path, method: str) -> None:
    """Of DataInf and exact, what the curvature leaves of v·g then is a share c / d_l of it."""
    model = rows_for(tmp_path, "llama", 1)
    results = {"self_influence": method != "cosine", "scores": True}
    config = tiny.configuration(tmp_path, model, tmp_path / "run", method={"name": method}, results=results)
    run = attribute(config, index=True, index_dtype="float32")
    g, v = gradients(model, tmp_path)
    want = getattr(reference, method.replace("-", "_"))(g, v)
    assert reference.worst(scores(run), want) < 1e-4
    if method != "cosine":
        own = run.examples()["self_influence"].to_numpy()
        np.testing.assert_allclose(own, reference.self_influence(g, method), rtol=1e-4, atol=0)
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = datainf_ray.query(run.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    assert reference.worst(scores(answers), want) < 1e-4


def test_lissa_that_diverges_ends_with_the_step_that_shows_it(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    """In a line that says what to do, and not after all the steps that it was asked for."""
    method = {"name": "lissa", "scale": 1e-3, "iterations": 100}
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method=method)
    with pytest.raises(
        datainf_ray.RunFailedError, match=r"LiSSA does not converge with a scale of 0.001: use a larger"
    ):
        attribute(config)
    record = datainf_ray.open_run(str(tmp_path / "run")).record
    assert [sweep.name for sweep in record.sweeps] == ["queries", "moments", "iteration"]
