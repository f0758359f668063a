"""What is asked of a method and would have no effect, or makes no sense, is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.influence import exact
from datainf_ray.planning.forecast import render
from tests import tiny

WRONG = {
    "method.tolerance: 0.001: has no effect on datainf; it belongs to exact": {"method.tolerance": 1e-3},
    "method.iterations: 3: has no effect on cosine; it belongs to exact and lissa": {
        "method.name": "cosine", "method.iterations": 3,
    },
    "method.scale: 2.0: has no effect on exact; it belongs to lissa": {"method.name": "exact", "method.scale": 2.0},
    "method.curvature_rows: 5: cosine has no curvature": {"method.name": "cosine", "method.curvature_rows": 5},
    "results.self_influence: true: lissa has none; use datainf or hessian-free or exact": {
        "method.name": "lissa", "results.self_influence": True,
    },
    "results.tokens: true: cosine divides by the row's own norm: its influence is no sum over tokens; use datainf or": {
        "method.name": "cosine", "results.tokens": True,
    },
    "results.tokens: true: representation divides": {"method.name": "representation", "results.tokens": True},
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_a_key_without_effect_is_refused(said: str, tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        datainf_ray.plan(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"), **WRONG[said])
    assert str(caught.value).startswith(said)


def test_tokens_are_for_tasks_whose_tokens_have_losses(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 6, 1, labels=3)
    tiny.write_rows(tmp_path / "queries.jsonl", 2, 2, labels=3)
    config = tiny.configuration(tmp_path, tiny.save_model(tmp_path, "bert"), tmp_path / "run", results={"tokens": True})
    with pytest.raises(RequestError) as caught:
        datainf_ray.plan(config)
    assert str(caught.value).startswith("results.tokens: true: task sequence-classification has a loss for each row")


def test_tokens_are_planned(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    without, with_them = (datainf_ray.plan(config, **{"results.tokens": asked}) for asked in (False, True))
    assert with_them.sweeps == [*without.sweeps, "tokens", "query tokens"]
    assert (without.token_rows, with_them.token_rows) == (0, 4 * 2 * 20 + 4)
    assert with_them.flops > 1.2 * without.flops
    assert "\ntokens        up to 164 rows, each for a query, are looked at token by token" in render(with_them)
    assert "\ntokens " not in render(without)


def test_exact_by_sweeps_is_planned_and_refused_where_they_are_too_many(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"name": "exact"}, gradients="recompute")
    direct = datainf_ray.plan(config)
    assert direct.sweeps == ["queries", "products", "scores"]
    assert not direct.sweeps_guessed
    monkeypatch.setattr(exact, "SIDE", 4)
    planned = datainf_ray.plan(config)
    assert planned.sweeps == ["queries", *["iteration"] * 41, "scores"]
    assert planned.flops > 8 * direct.flops
    assert "perhaps 43: queries, 41 × iteration, scores" in render(planned)
    assert datainf_ray.plan(config, **{"method.iterations": 7}).sweeps.count("iteration") == 7
    monkeypatch.setattr(exact, "MOST_PASSES", 100)
    with pytest.raises(RequestError) as caught:
        datainf_ray.plan(config)
    assert str(caught.value).startswith("method.name: exact: a block of 128 entries and 40 rows need about 41 sweeps, ")
    assert datainf_ray.plan(config, **{"method.iterations": 7}).sweeps.count("iteration") == 7


def test_self_influence_costs_the_plan_its_sample(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    without, with_it = (datainf_ray.plan(config, **{"results.self_influence": own}) for own in (False, True))
    assert with_it.sweeps == [*without.sweeps[:-1], "self", "scores"]
    assert with_it.worker_bytes > without.worker_bytes
    assert with_it.output_bytes > without.output_bytes
