"""Rows whose forward or backward pass raises an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datainf_ray.cluster.chunk import Swept, sweep_chunk
from datainf_ray.common.errors import RunFailedError
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Scores
from datainf_ray.model.capture import CaptureError
from datainf_ray.model.check import check
from datainf_ray.model.replica import Replica
from tests import tiny
from tests.model.compare import batch_of, examples_of, rows_for

BAD = "no \x1b[31mexpert\nfor this"


@contextmanager
def before(replica: Replica, look: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """`look` sees the tokens of every batch that the model is called with."""
    base: nn.Module = replica.model.get_base_model()
    handle = base.register_forward_pre_hook(lambda module, inputs, given: look(given["input_ids"]), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def swept(tmp_path: Path) -> tuple[Replica, list[Example], Callable[[list[Example]], Swept]]:
    model = tiny.save_model(tmp_path, "llama")
    replica, task = tiny.replica(model), tiny.task("causal-lm")
    examples = examples_of(rows_for(model, tmp_path))
    vectors = {b.name: {"vector": torch.ones(2, b.size)} for b in replica.blocks}

    def sweep(rows: list[Example]) -> Swept:
        def make() -> Scores:
            return Scores(replica.blocks, len(rows), vectors=vectors)

        return sweep_chunk(replica, rows, make, 10**4, lambda e, at: task.batch(e, at, 0))

    return replica, examples, sweep


def scores(swept: Swept) -> np.ndarray[Any, Any]:
    assert isinstance(swept.fold, Scores)
    return swept.fold.influence().numpy()


def test_a_row_that_raises_has_a_status_and_the_others_their_scores(swept: Any) -> None:
    replica, examples, sweep = swept
    bad = torch.tensor(examples[2].values["input_ids"])

    def refuse(ids: torch.Tensor) -> None:
        if any(torch.equal(row[: len(bad)], bad) for row in ids):
            raise IndexError(BAD)

    with before(replica, refuse):
        got = sweep(examples)
        again = sweep(examples)
    status, detail = (got.facts[name].to_pylist() for name in ("status", "detail"))
    assert status == ["ok", "ok", "failed", "ok", "ok", "ok", "ok"]
    assert detail[2] == "IndexError: no [31mexpert for this"
    assert set(detail) - {detail[2]} == {""}
    assert got.facts["loss"][2].as_py() is None
    assert got.usable.tolist() == [s == "ok" for s in status]
    np.testing.assert_array_equal(scores(got), scores(again))
    left = [k for k in range(7) if k != 2]
    want = scores(sweep([examples[k] for k in left]))
    np.testing.assert_array_equal(scores(got)[left], want)


def test_a_batch_that_raises_though_none_of_its_rows_does_goes_row_by_row(swept: Any) -> None:
    replica, examples, sweep = swept
    want = scores(sweep(examples))

    def refuse(ids: torch.Tensor) -> None:
        if len(ids) > 1:
            raise CaptureError("a layer got more gradient after it seemed complete")

    with before(replica, refuse):
        got = sweep(examples)
    assert got.facts["status"].to_pylist() == ["ok"] * 7
    np.testing.assert_allclose(scores(got), want, rtol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), MemoryError(), RuntimeError("CUDA error: lost")])
def test_what_is_not_the_rows_affair_is_raised(swept: Any, error: Exception) -> None:
    replica, examples, sweep = swept

    def refuse(ids: torch.Tensor) -> None:
        raise error

    with before(replica, refuse), pytest.raises(type(error)):
        sweep(examples)


def test_a_mistake_of_what_takes_the_gradients_is_not_the_rows(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    replica, examples = tiny.replica(model), examples_of(rows_for(model, tmp_path))

    class Broken(Scores):
        def update(self, *given: Any) -> None:
            raise ValueError("a mistake of ours")

    vectors = {b.name: {"vector": torch.ones(1, b.size)} for b in replica.blocks}
    with pytest.raises(ValueError, match="a mistake of ours"):
        sweep_chunk(
            replica,
            examples,
            lambda: Broken(replica.blocks, len(examples), vectors=vectors),
            10**4,
            lambda e, at: tiny.task("causal-lm").batch(e, at, 0),
        )


def test_the_check_goes_by_the_rows_that_can_be_computed(swept: Any) -> None:
    replica, examples, _ = swept
    first = torch.tensor(examples[0].values["input_ids"])

    def refuse(ids: torch.Tensor) -> None:
        if ids.shape[1] == len(first) and torch.equal(ids[0], first):
            raise ValueError(BAD)

    with before(replica, refuse):
        verdict = check(replica, batch_of(examples, [0, 1, 3]))
    assert (verdict.path, verdict.reason) == ("hooks", None)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)


def test_a_model_that_can_compute_no_row_is_told_in_one_line(swept: Any) -> None:
    replica, examples, _ = swept

    def refuse(ids: torch.Tensor) -> None:
        raise ValueError(BAD)

    said = r"^the model cannot compute any of 2 rows; the first is 0: ValueError: no .*expert for this$"
    with before(replica, refuse), pytest.raises(RunFailedError, match=said):
        check(replica, batch_of(examples, [0, 1]))
