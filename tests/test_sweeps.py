"""The ways to the same answer: kept gradients, groups of queries, samples, and the gradient index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.influence import exact
from tests import reference, tiny
from tests.runs_of import attribute, scores, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def sources(run: datainf_ray.Run) -> list[tuple[str, str]]:
    return [(sweep["name"], sweep["source"]) for sweep in run.summary()["sweeps"]]


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    return tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")


def test_kept_gradients_and_recomputed_ones_give_the_same_bits(tmp_path: Path, config: dict[str, Any]) -> None:
    keep = attribute(config, gradients="keep")
    again = attribute(config, gradients="recompute", output=str(tmp_path / "again"))
    assert sources(keep)[-2:] == [("curvature", "backward"), ("scores", "object-store")]
    assert sources(again)[-2:] == [("curvature", "backward"), ("scores", "backward")]
    assert tables(keep) == tables(again)
    assert keep.record.sizes.gradients == "keep"


@pytest.mark.parametrize("method", ["datainf", "lissa", "exact"])
def test_those_of_a_sample_are_kept_from_its_first_sweep_to_its_last(
    tmp_path: Path, config: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DataInf's moments and curvature; the steps of LiSSA, and of exact by conjugate gradient."""
    monkeypatch.setattr(exact, "SIDE", 4)
    steps = {"lissa": {"iterations": 2, "scale": 60.0}, "exact": {"iterations": 3}}
    config["method"] = {"name": method, "curvature_rows": 20, **steps.get(method, {})}
    keep = attribute(config)
    again = attribute(config, gradients="recompute", output=str(tmp_path / "again"))
    first, second = ("moments", "curvature") if method == "datainf" else ("moments", "iteration")
    found = sources(keep)[1:-1]
    assert found[:2] == [(first if method != "exact" else second, "backward")] * 2  # a half each
    assert found[2:] == [(second, "object-store")] * (2 if method == "datainf" else 4)
    assert {source for _, source in sources(again)} == {"backward"}
    assert sources(keep)[-1] == ("scores", "backward")
    assert tables(keep) == tables(again)


def test_blocks_whose_bound_is_too_large_are_swept_again(tmp_path: Path, config: dict[str, Any]) -> None:
    run = attribute(config, **{"method.damping": 1e4})  # λ as large as ‖g‖²: then much is lost between the nodes
    names = [name for name, _ in sources(run)]
    assert names == ["queries", "pilot", "curvature", "curvature again", "scores"]
    blocks = run.blocks()
    assert run.record.curvature["exact_blocks"] == sum(b == 0 for b in blocks["error_bound"].to_pylist()) > 0
    peft = reference.load(config["model"])
    g, v = (
        reference.gradients(peft, reference.encode(config["model"], str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )
    assert reference.worst(scores(run), reference.datainf(g, v, 1e4)) < 1e-4


def test_queries_in_groups_take_a_curvature_sweep_each(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datainf_ray.session.solve as module

    together = attribute(config)
    choose = module.choose_sizes

    def in_groups(*values: Any) -> Any:
        return module.replace(choose(*values), groups=((0, 2), (2, 4)))

    monkeypatch.setattr(module, "choose_sizes", in_groups)  # as on a worker with little memory
    apart = attribute(config, output=str(tmp_path / "apart"))
    assert [name for name, _ in sources(apart)] == ["queries", "pilot", "curvature", "curvature", "scores"]
    assert reference.worst(scores(apart), scores(together).double()) < 1e-5


def test_a_sample_of_the_rows_gives_the_curvature_and_says_how_certain_it_is(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    whole = attribute(config)
    some = attribute(config, output=str(tmp_path / "some"), **{"method.curvature_rows": 20})
    names = [name for name, _ in sources(some)]
    assert names == ["queries", "moments", "moments", "curvature", "curvature", "scores"]
    assert [s["examples"] for s in some.summary()["sweeps"]] == [4, 10, 10, 10, 10, 40]
    said = some.record.curvature
    assert said["rows"] == 20
    off = (scores(some) - scores(whole)).norm(dim=0) / scores(whole).norm(dim=0)
    assert 0.1 * float(off.mean()) < said["sampling_error"] < 10 * float(off.mean())
    all_of_them = attribute(config, output=str(tmp_path / "all"), **{"method.curvature_rows": 40})
    assert tables(all_of_them) == tables(whole)


def test_scores_are_gathered_into_parts(tmp_path: Path, config: dict[str, Any]) -> None:
    run = attribute(config)
    assert [p.name for p in (tmp_path / "run" / "examples").iterdir()] == ["part-000000.parquet"]
    file = pq.ParquetFile(tmp_path / "run" / "examples" / "part-000000.parquet")
    assert file.metadata.num_rows == 40
    assert b"datainf.moments" not in (file.schema_arrow.metadata or {})
    assert run.examples()["row"].to_pylist() == list(range(40))


def test_an_index_answers_new_queries_as_a_run_would(tmp_path: Path, config: dict[str, Any]) -> None:
    made = attribute(config, index=True, index_dtype="float32")
    tiny.write_rows(tmp_path / "more.jsonl", 3, seed=5)
    (tmp_path / "train.jsonl").rename(tmp_path / "gone.jsonl")  # the rows are not needed any more
    answers = datainf_ray.query(
        made.url, queries=str(tmp_path / "more.jsonl"), output=str(tmp_path / "answers"), progress=False
    )
    names = [json.loads(line)["name"] for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert answers.queries()["id"].to_pylist() == names  # queries.id is the run's
    assert sources(answers) == [("queries", "backward"), ("curvature", "index"), ("scores", "index")]
    (tmp_path / "gone.jsonl").rename(tmp_path / "train.jsonl")
    config["queries"]["path"] = str(tmp_path / "more.jsonl")
    direct = attribute(config, output=str(tmp_path / "direct"))
    assert reference.worst(scores(answers), scores(direct).double()) < 1e-5
    for column in ("row", "id", "tokens", "loss", "status"):
        assert answers.examples()[column] == direct.examples()[column]
    np.testing.assert_allclose(answers.examples()["sqnorm"], direct.examples()["sqnorm"], rtol=1e-6, atol=0)
    previews = dict(zip(direct.tops()["row"].to_pylist(), direct.tops()["preview"].to_pylist(), strict=True))
    assert all(previews[t["row"]] == t["preview"] for t in answers.tops().to_pylist())
    assert answers.top(query=1, k=3)["row"].to_pylist() == direct.top(query=1, k=3)["row"].to_pylist()
    assert answers.blocks()["damping"] == made.blocks()["damping"]
    assert tables(made).keys() >= {"index/part-000000.parquet"}


@pytest.mark.parametrize("method", ["datainf", "exact"])
def test_an_index_is_asked_with_another_damping(tmp_path: Path, config: dict[str, Any], method: str) -> None:
    """What the run knows is λ with its own c; and what an index cannot give is not passed over in silence."""
    made = attribute(config, index=True, index_dtype="float32", **{"method.curvature_rows": None})
    peft = reference.load(config["model"])
    g, v = (
        reference.gradients(peft, reference.encode(config["model"], str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )

    def ask(**changed: Any) -> datainf_ray.Run:
        queries = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
        output = str(tmp_path / "answers")
        changed = {"method.name": method, **changed}
        return datainf_ray.query(made.url, queries=queries, output=output, progress=False, **changed)

    for key, value, said in (
        ("loss", "sum", "method.loss: sum: the index of .*run holds gradients of mean losses"),
        ("curvature_rows", 20, "method.curvature_rows: 20: has no effect: the curvature is that of all rows of the in"),
        ("scale", 3, "method.scale: 3.0: has no effect on .*; it belongs to lissa"),
    ):
        with pytest.raises(RequestError, match=said):
            ask(**{f"method.{key}": value})
    answers = ask(**{"method.damping": 10})
    assert reference.worst(scores(answers), getattr(reference, method)(g, v, 10)) < 1e-4
    dampings = (run.blocks()["damping"].to_numpy() for run in (answers, made))
    np.testing.assert_allclose(next(dampings), 100 * next(dampings), rtol=1e-12, atol=0)


def test_a_projected_index_says_how_good_it_is_and_a_run_without_one_cannot_be_asked(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    made = attribute(config, index=str(tmp_path / "elsewhere"), index_projection=8)
    said = made.summary()["index"]
    assert said["projection"] == 8
    assert said["correlation_rows"] == 40
    answers = datainf_ray.query(made.url, queries=str(tmp_path / "queries.jsonl"), output=str(tmp_path / "a"),
                                progress=False)  # fmt: skip
    want, got = scores(made).double(), scores(answers).double()
    pairs = [float(torch.corrcoef(torch.stack([want[:, q], got[:, q]]))[0, 1]) for q in range(4)]
    assert said["correlation"] == pytest.approx(sum(pairs) / 4, abs=1e-4)
    assert 0.3 < said["correlation"] < 1
    with pytest.raises(RequestError, match="has no gradient index"):
        datainf_ray.query(answers.url, queries=str(tmp_path / "queries.jsonl"), output=str(tmp_path / "b"))


def test_hessian_free_keeps_an_index_too(tmp_path: Path, config: dict[str, Any]) -> None:
    made = attribute(config, index=True, index_dtype="bfloat16", method={"name": "hessian-free"})
    answers = datainf_ray.query(made.url, queries=str(tmp_path / "queries.jsonl"), output=str(tmp_path / "answers"),
                                progress=False)  # fmt: skip
    assert reference.worst(scores(answers), scores(made).double()) < 1e-2
    with pytest.raises(RequestError, match="knows no damping"):
        datainf_ray.query(
            made.url, queries=str(tmp_path / "queries.jsonl"), output=str(tmp_path / "b"), **{"method.name": "datainf"}
        )
    record = Path(made.url) / "run.json"
    earlier = json.loads(record.read_text())
    del earlier["identity"]["encoding"]  # as the version wrote it that made other tokens of a prompt and its completion
    earlier["fingerprint"] = "0" * 64
    record.write_text(json.dumps(earlier))
    with pytest.raises(RequestError, match="made by an earlier version, which made other tokens of the same rows"):
        datainf_ray.query(made.url, queries=str(tmp_path / "queries.jsonl"), output=str(tmp_path / "b"))
    with pytest.raises(RequestError, match="an earlier version made it, and other tokens of the same rows"):
        attribute(config, index=True, index_dtype="bfloat16", method={"name": "hessian-free"})
