from __future__ import annotations

import random

import pytest
import torch

from datainf_ray.corpus.batches import plan_batches
from datainf_ray.corpus.tokens import Example
from tests import tiny


def causal(*ids: int) -> Example:
    return Example(0, "a", "ok", values={"input_ids": list(ids), "labels": [-100, *ids[1:]]}, lengths=(len(ids),))


@pytest.mark.parametrize("budget", [1, 7, 64, 1000, 10**9])
def test_every_row_is_in_one_batch_within_the_budget(budget):
    draw = random.Random(0)
    lengths = [draw.randint(1, 200) for _ in range(300)]
    batches = plan_batches([(n,) for n in lengths], budget)
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    order = [i for batch in batches for i in batch]
    assert order == sorted(order, key=lambda i: (lengths[i], i))


def test_batches_are_as_large_as_the_budget_allows():
    assert plan_batches([(4,), (4,), (4,), (4,), (9,)], 12) == [[0, 1, 2], [3], [4]]
    assert plan_batches([(5,), (100,), (5,)], 10) == [[0, 2], [1]]
    assert plan_batches([], 10) == []


def test_few_rows_of_very_different_lengths_are_not_padded_to_the_longest():
    draw = random.Random(1)
    for rows in (16, 64, 1024):
        lengths = [draw.randint(16, 192) for _ in range(rows)]
        batches = plan_batches([(n,) for n in lengths], 2048)
        padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        assert padded <= 1.15 * sum(lengths)
        assert sum(sum(lengths[i] for i in batch) < 128 for batch in batches) <= 1


def test_sequences_of_a_row_are_padded_each_by_itself():
    lengths = [(1, 9), (9, 1), (5, 5), (2, 8)]
    for batch in plan_batches(lengths, 40):
        padded = [max(column) for column in zip(*(lengths[k] for k in batch), strict=True)]
        assert len(batch) * sum(padded) <= 40


def test_padding_is_marked_and_positions_are_left_to_the_model():
    batch = tiny.task("causal-lm").batch([causal(5, 6), causal(9), causal(1, 2, 3, 4)], [2, 0], 7)
    assert {name: tensor.tolist() for name, tensor in batch.values.items()} == {
        "input_ids": [[1, 2, 3, 4], [5, 6, 7, 7]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [[-100, 2, 3, 4], [-100, 6, -100, -100]],
    }
    assert batch.rows.tolist() == [2, 0]
    assert {t.dtype for t in (*batch.values.values(), batch.rows)} == {torch.int64}
    alone = batch.to("cpu").one(1)
    assert (alone.values["input_ids"].tolist(), alone.rows.tolist(), len(alone)) == ([[5, 6]], [0], 1)


def test_classes_and_numbers_are_one_target_a_row():
    task = tiny.task("sequence-classification")
    types = {"input_ids": [1, 2], "token_type_ids": [0, 1]}
    batch = task.batch([Example(0, "a", "ok", values=types | {"target": t}) for t in (2, 0)], [0, 1], 0)
    assert batch.values["labels"].tolist() == [2, 0]
    assert batch.values["labels"].dtype == torch.int64
    assert batch.values["token_type_ids"].tolist() == [[0, 1], [0, 1]]
    mixed = [
        Example(0, "a", "ok", values=types | {"target": 2}),
        Example(1, "b", "ok", values={"input_ids": [3], "target": 0}),
    ]
    assert task.batch(mixed, [1, 0], 0).values["token_type_ids"].tolist() == [[0, 0], [0, 1]]
    assert "token_type_ids" not in task.batch(mixed, [1], 0).values
    numbers = task.batch([Example(0, "a", "ok", values={"input_ids": [1], "target": 0.5})], [0], 0)
    assert numbers.values["labels"].tolist() == [0.5]
    assert numbers.values["labels"].dtype == torch.float32
