"""What each token contributes, as whole runs: against a backward pass a token in float64, and the influence itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from datainf_ray.watch.progress import Silent
from tests import reference, tiny
from tests.interrupting import Interrupter
from tests.runs_of import attribute, status_of, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def solved(g: dict[str, Tensor], v: dict[str, Tensor], c: float = 0.1) -> dict[str, Tensor]:
    """r of every query in every block, as the paper writes it: queries × size."""
    found = {}
    for name, block in g.items():
        lam = c * float(block.square().sum()) / block.numel()
        if not lam:
            found[name] = torch.zeros_like(v[name])
            continue
        h = [sum((q @ x) / (lam + x @ x) * x for x in block) / len(block) for q in v[name]]
        found[name] = (v[name] - torch.stack(h)) / lam
    return found


def slopes(peft: Any, row: dict[str, Any], r: dict[str, Tensor]) -> Tensor:
    """⟨∂loss_t/∂θ, r_q⟩ of every label and query (labels × queries), by a backward pass for every token."""
    seq2seq = peft.config.is_encoder_decoder
    labels = {"labels": torch.tensor([row["labels"]])} if seq2seq else {}
    chances = peft(input_ids=torch.tensor([row["input_ids"]]), **labels).logits[0].log_softmax(-1)
    named = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    out = torch.full((len(row["labels"]), len(next(iter(r.values())))), torch.nan, dtype=torch.float64)
    for t, label in enumerate(row["labels"]):
        if label != -100:
            loss = -chances[t if seq2seq else t - 1, label]
            found = torch.autograd.grad(loss, [*named.values()], retain_graph=True, allow_unused=True)
            out[t] = sum(r[n] @ grad.flatten() for n, grad in zip(named, found, strict=True) if grad is not None)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_shares_are_those_of_a_backward_pass_a_token(tmp_path: Path, arch: str) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 24, 1)
    tiny.write_rows(tmp_path / "queries.jsonl", 3, 2)
    model = tiny.save_model(tmp_path, arch)
    config = tiny.configuration(tmp_path, model, tmp_path / "run", results={"tokens": True, "top_k": 4})
    planned = datainf_ray.plan(config)
    run = attribute(config)
    assert planned.sweeps == [sweep["name"] for sweep in run.summary()["sweeps"]]
    assert planned.token_rows == 3 * 2 * 4 + 3

    peft = reference.load(model)
    rows, queries = (reference.encode(model, str(tmp_path / f"{name}.jsonl")) for name in ("train", "queries"))
    v = reference.gradients(peft, queries)
    r = solved(reference.gradients(peft, rows), v)
    tops = run.tops().to_pylist()
    assert 18 <= len(tops) <= 3 * 2 * 4
    for top in tops:
        (found,) = run.tokens(top["query"], top["row"])
        assert (found.status, found.direction, found.rank, found.id) == ("ok", top["direction"], top["rank"], top["id"])
        row = rows[top["row"]]
        want = -slopes(peft, row, r)[:, top["query"]] / sum(label != -100 for label in row["labels"])
        got = torch.tensor([float("nan") if share is None else share for share in found.shares]).double()
        torch.testing.assert_close(
            got, want, rtol=1e-4, atol=1e-4 * float(want.nan_to_num().abs().sum()), equal_nan=True
        )
        assert float(got.nansum()) == pytest.approx(top["influence"], rel=1e-4)
        assert found.influence == pytest.approx(top["influence"], rel=1e-4)
        ids = row["labels"] if arch == "t5" else row["input_ids"]
        assert "".join(found.tokens) == tiny.tokenizer().decode(ids)
    for number, query in enumerate(queries):
        (found,) = run.tokens(number)
        want = slopes(peft, query, r)[:, number] / sum(label != -100 for label in query["labels"])
        got = torch.tensor([float("nan") if share is None else share for share in found.shares]).double()
        torch.testing.assert_close(
            got, want, rtol=1e-4, atol=1e-4 * float(want.nan_to_num().abs().sum()), equal_nan=True
        )
        whole = sum(float(v[name][number] @ r[name][number]) for name in v)
        assert found.influence == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_groups_methods_workers_and_bad_rows(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """hessian-free, a sum for a loss, one query of all rows, one of which is bad; the same bits by two workers."""
    lines = (tmp_path / "queries.jsonl").read_text().splitlines()
    bad = json.dumps({"name": "bad", "prompt": "w1", "completion": None})
    (tmp_path / "queries.jsonl").write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", results={"tokens": True, "top_k": 30})
    config |= {"method": {"name": "hessian-free", "loss": "sum"}, "index": True}
    config["queries"] |= {"group": "all"}
    run = attribute(config)
    cut = load_config(config, output=str(tmp_path / "again"), **{"cluster.max_workers": 2})
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(cut), Interrupter("tokens", 1))
    assert tables(execute(prepare(cut), Silent())) == tables(run)
    assert len(run.tokens(0)) == 5
    assert [row.status for row in run.tokens(0)] == ["ok", "unreadable", "ok", "ok", "ok"]
    peft = reference.load(tiny_llama)
    (tmp_path / "good.jsonl").write_text("\n".join(lines) + "\n")
    v = {
        n: x.mean(0)
        for n, x in reference.gradients(peft, reference.encode(tiny_llama, str(tmp_path / "good.jsonl")), "sum").items()
    }
    norm = sum(float(x @ x) for x in v.values())
    assert sum(row.influence or 0 for row in run.tokens(0)) == pytest.approx(norm, rel=1e-4)
    tops = run.tops().to_pylist()
    beyond = [top for top in tops if top["rank"] > 20]
    for top in tops[:3]:
        (found,) = run.tokens(0, top["id"])
        assert sum(share or 0 for share in found.shares) == pytest.approx(top["influence"], rel=1e-4)
    for top in beyond[:1]:
        with pytest.raises(RequestError, match=r"^row: .* is not among the \d+ rows of query 0 that were looked at"):
            run.tokens(0, top["row"])
    asked: dict[str, Any] = {"queries": str(tmp_path / "good.jsonl"), "output": str(tmp_path / "answers")}
    with pytest.raises(RequestError, match=r"^results\.tokens: true: the index has gradients and no rows"):
        datainf_ray.query(run.url, **asked, **{"results.tokens": True})
    answers = datainf_ray.query(run.url, **asked, progress=False)
    assert not (Path(answers.url) / "tokens.parquet").exists()
    with pytest.raises(RequestError, match=r"has no shares of tokens; run it with results\.tokens: true"):
        answers.tokens(0)
    assert status_of(monkeypatch, "top", run.url, "--tokens", "-k", 2, "--harmful") == 0
    said = capsys.readouterr().out
    assert [said.count(text) for text in ("query 0 itself", "harmful, rank", "helpful")] == [5, 2, 0]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert status_of(monkeypatch, "top", run.url, "--tokens", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["shares"] == run.tokens(0)[0].shares
    page = (Path(run.url) / "report.html").read_text()
    assert page.count("Token by token") == 1
    assert "Token by token" not in (Path(answers.url) / "report.html").read_text()
    (Path(run.url) / "tokens.parquet").write_bytes(b"PAR1")
    with pytest.raises(RequestError, match=r"tokens\.parquet: is not the file that the run wrote"):
        run.tokens(0)
