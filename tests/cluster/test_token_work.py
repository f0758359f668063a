"""Shares of tokens where a layer has no forward-mode derivative, or a wrong one: they are right, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig

from datainf_ray.cluster import token_work as module
from datainf_ray.cluster.token_orders import Pair
from datainf_ray.cluster.token_work import TokenWork
from datainf_ray.model import slopes as of_model
from datainf_ray.model.replica import Replica
from tests import tiny
from tests.model.compare import batch_of, captured, examples_of, rows_for
from tests.model.test_slopes import direction_of


class _NoRule(torch.autograd.Function):
    """The identity, of which torch knows no forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def without_rule(layer: nn.Module, inputs: Any, output: Tensor) -> Any:
    return _NoRule.apply(output)


def aside(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Over a figure that no gradient is to flow through."""
    with torch.no_grad():
        figure = output.square().mean(-1, keepdim=True).sqrt()
    return output / figure


class Case:
    def __init__(self, folder: Path, hook: Callable[..., Any] | None, arch: str = "llama") -> None:
        model = tiny.save_model(folder, arch)
        self.rows = rows_for(model, folder, 3)
        self.replica: Replica = tiny.replica(model)
        if hook is not None:
            layers = [m for m in self.replica.model.modules() if type(m).__name__ == "LlamaMLP"]
            layers[0].register_forward_hook(hook)
        self.examples = examples_of(self.rows)
        gradients, _ = captured(self.replica, self.examples, 3)
        direction = direction_of(self.replica)
        self.influence = -sum(gradients[name].double() @ direction[name].double() for name in direction)
        self.vectors = {name: {"vector": vector[None]} for name, vector in direction.items()}

    def table(self, influence: bool = True) -> pa.Table:
        task = self.replica.task
        assert task.token_losses is not None  # type: ignore[attr-defined]
        work = TokenWork(self.replica, task.token_losses, batch_of, self.vectors, mean=True)  # type: ignore[attr-defined]
        pairs = [
            Pair(k, 0, -1.0, "harmful", k + 1, float(self.influence[k]) if influence else None)
            for k in range(len(self.rows))
        ]
        return work.table(self.examples, pairs, 10_000, tiny.tokenizer())


@pytest.mark.parametrize(("hook", "by_backward"), [(None, (0,)), (without_rule, (3,)), (aside, (1, 2, 3))])
def test_shares_come_to_the_influence_whatever_the_layers_are(
    tmp_path: Path,
    hook: Callable[..., Any] | None,
    by_backward: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(tmp_path, hook)
    slow: list[int] = []
    plain = module.backward_slopes
    monkeypatch.setattr(module, "backward_slopes", lambda *given: slow.append(1) or plain(*given))
    table = case.table()
    assert table["status"].to_pylist() == ["ok"] * 3
    assert len(slow) in by_backward
    for k, shares in enumerate(table["shares"].to_pylist()):
        assert [share is None for share in shares] == [label == -100 for label in case.rows[k]["labels"]]
        near = 2 * module.CLOSE * sum(abs(share or 0) for share in shares) if hook is aside else 0.0
        right = pytest.approx(float(case.influence[k]), rel=1e-4, abs=near)
        assert sum(share or 0 for share in shares) == right
        assert table["influence"][k].as_py() == right


def test_experts_are_computed_by_what_has_a_derivative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    monkeypatch.setitem(tiny.CONFIGS, "mixtral", lambda: MixtralConfig(vocab_size=tiny.VOCABULARY, **settings))
    monkeypatch.setitem(tiny.ATTENTION, "mixtral", ["q_proj", "v_proj"])
    case = Case(tmp_path, None, "mixtral")
    monkeypatch.setattr(of_model, "MOST_BACKWARD", 0)
    lines = case.table().to_pylist()
    assert [line["detail"] for line in lines] == [""] * 3
    for line, influence in zip(lines, case.influence.tolist(), strict=True):
        assert line["influence"] == pytest.approx(influence, rel=1e-4)


def test_a_row_that_is_too_long_for_backward_passes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, without_rule)
    counts = [sum(label != -100 for label in row["labels"]) for row in case.rows]
    monkeypatch.setattr(of_model, "MOST_BACKWARD", max(counts) - 1)
    lines = case.table().to_pylist()
    assert [line["status"] for line in lines] == ["failed" if n == max(counts) else "ok" for n in counts]
    failed = next(line for line in lines if line["status"] == "failed")
    assert failed["detail"].startswith("the model's layers have no forward-mode derivative, and the row has ")
    assert (failed["shares"], failed["influence"]) == (None, None)
    assert "".join(failed["tokens"]) == tiny.tokenizer().decode(case.rows[failed["row"]]["input_ids"])


def test_shares_that_do_not_come_to_the_influence_are_not_given(tmp_path: Path) -> None:
    case = Case(tmp_path, None)
    case.influence = case.influence * 1.5
    lines = case.table().to_pylist()
    assert {line["status"] for line in lines} == {"failed"}
    assert all("tokens' shares come to" in line["detail"] and line["shares"] is None for line in lines)
