"""What a model predicts, as its output passes by: transformers' own on the bare row, and nothing else is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datainf_ray.common.errors import RunFailedError
from datainf_ray.config import ModelConfig
from datainf_ray.model.check import check
from datainf_ray.model.load import load_replica
from datainf_ray.model.replica import Replica
from tests import reference, tiny
from tests.model.compare import batch_of, examples_of, rows_for
from tests.model.test_alone import CLASSIFIERS, LIMIT, examples_for, model_of
from tests.model.test_mapped import CLASSES, coupled

Seen = dict[int, Any]
#: Of a base that does not say the same of all rows.
LIVELY = {"initializer_range": 0.5}


def gathered(replica: Replica, batch: Any, **way: Any) -> tuple[Seen, torch.Tensor, dict[str, torch.Tensor], int]:
    """What is predicted for each row, the losses and gradients, and how often the model was called."""
    found: Seen = {}
    calls: Counter[str] = Counter()
    gradients = replica.room(len(batch))

    def see(predicted: torch.Tensor, rows: torch.Tensor) -> None:
        for row, value in zip(rows.tolist(), predicted.tolist(), strict=True):
            assert row not in found
            found[row] = value

    def keep(block: str, values: torch.Tensor, rows: torch.Tensor) -> None:
        gradients[block].index_copy_(0, rows, values)

    hook = replica.model.register_forward_pre_hook(lambda *_: calls.update(["model"]))
    losses = replica.gradients(batch, keep, **{"see": see, **way})
    hook.remove()
    return found, losses, gradients, calls["model"]


@torch.no_grad()
def own(model: dict[str, Any], rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The logits of the model as its users call it, in float64, for each bare row."""
    peft = reference.load(model)
    return [peft(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("arch", ["bert", "roberta", "gpt2-classifier", "llama-classifier"])
def test_a_class_is_the_models_own_on_the_bare_row(tmp_path: Path, arch: str, one_by_one: bool) -> None:
    model = tiny.save_model(tmp_path, arch, labels=5, seed=5, settings=LIVELY)
    rows = rows_for(model, tmp_path, 23)
    want = {k: int(logits.argmax()) for k, logits in enumerate(own(model, rows))}
    assert len(set(want.values())) > 1, "a model that always says the same shows nothing"
    assert any(want[k] != row["labels"] for k, row in enumerate(rows)), "nor does one that is always right"
    replica = tiny.replica(model)
    batch = batch_of(examples_of(rows), range(len(rows)))
    found, losses, gradients, calls = gathered(replica, batch, one_by_one=one_by_one)
    assert found == want
    nobody, plain, without, as_often = gathered(replica, batch, one_by_one=one_by_one, see=None)
    assert (nobody, calls) == ({}, as_often)  # no other forward pass
    assert torch.equal(losses, plain)
    assert all(torch.equal(gradients[name], without[name]) for name in gradients)
    assert not replica.model._forward_hooks


def test_the_number_of_a_regression(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "bert", labels=1, settings=LIVELY)
    rows = rows_for(model, tmp_path, 9)
    for row in rows:
        row["labels"] = int(row["labels"])
    examples = examples_of(rows)
    for example in examples:
        example.values["target"] = float(example.values["target"])
    found, *_ = gathered(tiny.replica(model), batch_of(examples, range(9)))
    want = [float(logits[0]) for logits in own(model, rows)]
    torch.testing.assert_close([found[k] for k in range(9)], want, rtol=1e-4, atol=0)


def test_rows_by_vmap_and_rows_of_one_length_at_a_time() -> None:
    """A model whose rows mind their neighbours, and one that minds padding: what the bare row gives counts."""
    examples = examples_for(CLASSES, LIMIT)
    for make, path in ((coupled, "vmap"), (lambda: model_of(CLASSIFIERS["FNet"], CLASSES), "hooks")):
        model, task = make(), tiny.task(CLASSES)
        with torch.no_grad():
            want = {
                k: int(model(input_ids=torch.tensor([example.values["input_ids"]])).logits.argmax())
                for k, example in enumerate(examples)
            }
        replica = Replica(make(), task)
        batch = task.batch(examples, range(len(examples)), 1)
        assert check(replica, batch).path == path
        assert replica.lengths_reason is not None
        found, *_ = gathered(replica, batch)
        assert found == want


def test_a_hidden_states_run_has_them_too(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "bert", labels=4, seed=5, settings=LIVELY)
    rows = rows_for(model, tmp_path, 11)
    replica = load_replica(ModelConfig(**model), tiny.task(CLASSES), states=True)
    found, *_ = gathered(replica, batch_of(examples_of(rows), range(11)))
    assert found == {k: int(logits.argmax()) for k, logits in enumerate(own(model, rows))}


def twice(model: Any, values: Any, reduction: Any) -> torch.Tensor:
    task = tiny.task(CLASSES)
    return (task.losses(model, values, reduction) + task.losses(model, values, reduction)) / 2


def test_a_loss_that_calls_the_model_more_than_once_tells_nothing_and_a_wrong_answer_is_one_line(
    tmp_path: Path,
) -> None:
    model = tiny.save_model(tmp_path, "bert")
    batch = batch_of(examples_of(rows_for(model, tmp_path, 5)), range(5))

    def replica(**changed: Any) -> Replica:
        return load_replica(ModelConfig(**model), replace(tiny.task(CLASSES), **changed))

    assert gathered(replica(losses=twice), batch)[0] == {}
    wrong: list[tuple[Callable[[Any], Any], str]] = [
        (lambda output: output.logits[:2, 0], r"^model\.task: its predictions are \(2,\), not one for each of 5$"),
        (lambda output: output.nothing, r"^model\.task: predictions raised AttributeError: .*nothing"),
        (lambda output: 3, r"^model\.task: predictions raised AttributeError"),
    ]
    for predictions, told in wrong:
        with pytest.raises(RunFailedError, match=told):
            gathered(replica(predictions=predictions), batch)
