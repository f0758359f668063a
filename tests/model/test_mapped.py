"""Gradients by torch.func of the whole model, where hooks see only what all rows of a batch have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

from datainf_ray.corpus.tokens import Example
from datainf_ray.model.mapped import mapped
from datainf_ray.model.replica import Replica
from tests import tiny
from tests.model.compare import batch_of
from tests.model.test_alone import LIMIT, Case, E, agree, alone, examples_for, model_of, taken

#: As the models are published: positions go through the layers of the words.
SHARED: dict[str, Any] = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 16,
    "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
DEBERTA = Case(lambda: T.DebertaV2Config(**E, **SHARED), ["query_proj", "value_proj"])
CLASSES = "sequence-classification"


def checked(double: bool = False) -> tuple[Replica, list[Example], Any]:
    model = model_of(DEBERTA, CLASSES)
    model = model.double() if double else model
    examples = examples_for(CLASSES, LIMIT)
    replica = Replica(model, tiny.task(CLASSES))
    verdict = replica.check(batch_of(examples, range(len(examples)), task=tiny.task(CLASSES)))
    return replica, examples, verdict


def test_a_table_of_positions_that_all_rows_share_is_told_apart() -> None:
    replica, examples, verdict = checked()
    assert (verdict.path, replica.path) == ("vmap", "vmap")
    assert "no row for each of" in str(verdict.reason)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)
    agree(taken(replica, CLASSES, examples, 60), alone(model_of(DEBERTA, CLASSES), examples))


def test_gradients_and_losses_are_autograds_and_the_model_is_as_before() -> None:
    replica, examples, _ = checked(double=True)
    before = {id(module): set(vars(module)) for module in replica.model.modules()}
    batch = batch_of(examples, [1, 2], task=tiny.task(CLASSES))  # of the same length
    losses, found = mapped(replica.model, replica.parameters, replica.task.losses, batch.values, "mean", scale=8.0)
    for k in range(2):
        right: dict[str, torch.Tensor] = {}
        loss = replica.gradients(batch.one(k), lambda name, g, rows, right=right: right.update({name: g}), True)
        torch.testing.assert_close(losses[k], loss[0], rtol=1e-12, atol=0)
        assert set(right) <= set(found)
        for name, gradient in right.items():
            torch.testing.assert_close(found[name][k].flatten(), gradient[0], rtol=1e-9, atol=1e-12)
    assert {id(module): set(vars(module)) for module in replica.model.modules()} == before


def test_a_model_that_decides_by_its_data_goes_one_by_one() -> None:
    model = model_of(DEBERTA, CLASSES)

    def decide(module: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out if out.sum() > 0 else out * 2

    model.get_base_model().deberta.embeddings.register_forward_hook(decide)
    examples = examples_for(CLASSES, LIMIT)
    replica = Replica(model, tiny.task(CLASSES))
    assert replica.check(batch_of(examples, range(len(examples)), task=tiny.task(CLASSES))).path == "one by one"
