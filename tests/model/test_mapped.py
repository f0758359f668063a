"""Gradients by torch.func of the whole model, where hooks see only what all rows of a batch have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

from datainf_ray.corpus.tokens import Example
from datainf_ray.model.check import check
from datainf_ray.model.mapped import mapped
from datainf_ray.model.replica import Replica
from tests import tiny
from tests.model.test_alone import CLASSIFIERS, LIMIT, Case, E, agree, alone, examples_for, model_of, taken

#: As the models are published: positions go through the layers of the words.
SHARED: dict[str, Any] = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 16,
    "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
DEBERTA = Case(lambda: T.DebertaV2Config(**E, **SHARED), ["query_proj", "value_proj"])
CLASSES = "sequence-classification"


def coupled() -> Any:
    """A model whose rows mind their neighbours, and of which hooks see whole batches."""
    model = model_of(CLASSIFIERS["BERT"], CLASSES)
    module: nn.Module = model.get_base_model().bert.embeddings
    module.register_forward_hook(lambda layer, inputs, out: out + 0.1 * (out - out.mean(0, keepdim=True)))
    return model


def batch_for(examples: list[Example], rows: list[int] | range) -> Any:
    return tiny.task(CLASSES).batch(examples, rows, 1)


def test_rows_that_hooks_cannot_tell_apart_go_by_vmap() -> None:
    examples = examples_for(CLASSES, LIMIT)
    replica = Replica(coupled(), tiny.task(CLASSES))
    verdict = check(replica, batch_for(examples, range(len(examples))))
    assert (verdict.path, replica.path) == ("vmap", "vmap")
    assert verdict.reason == verdict.lengths_reason is not None
    assert verdict.cosine == pytest.approx(1, abs=1e-6)
    agree(taken(replica, CLASSES, examples, 60), alone(coupled(), examples))


def test_gradients_and_losses_are_autograds_and_the_model_is_as_before() -> None:
    """A table that all rows share has gradients for each of them."""
    examples = examples_for(CLASSES, LIMIT)
    replica = Replica(model_of(DEBERTA, CLASSES).double(), tiny.task(CLASSES))
    before = {id(module): set(vars(module)) for module in replica.model.modules()}
    batch = batch_for(examples, [1, 2])  # of the same length
    losses, found, _ = mapped(replica.model, replica.parameters, replica.task.losses, batch.values, "mean", scale=8.0)
    for k in range(2):
        right: dict[str, torch.Tensor] = {}
        loss = replica.gradients(batch.one(k), lambda name, g, rows, right=right: right.update({name: g}), True)
        torch.testing.assert_close(losses[k], loss[0], rtol=1e-12, atol=0)
        assert set(right) <= set(found)
        for name, gradient in right.items():
            torch.testing.assert_close(found[name][k].flatten(), gradient[0], rtol=1e-9, atol=1e-12)
    assert {id(module): set(vars(module)) for module in replica.model.modules()} == before


def test_a_model_that_decides_by_its_data_goes_one_by_one() -> None:
    model = coupled()

    def decide(module: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out if out.sum() > 0 else out * 2

    model.get_base_model().bert.embeddings.register_forward_hook(decide)
    examples = examples_for(CLASSES, LIMIT)
    replica = Replica(model, tiny.task(CLASSES))
    assert check(replica, batch_for(examples, range(len(examples)))).path == "one by one"
