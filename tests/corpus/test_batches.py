from __future__ import annotations

import random

import pytest
import torch

from datainf_ray.corpus.batches import collate, plan_batches
from datainf_ray.corpus.tokens import Example


def causal(*ids: int) -> Example:
    return Example(0, "a", "ok", input_ids=list(ids), labels=[-100, *ids[1:]])


@pytest.mark.parametrize("budget", [1, 7, 64, 1000, 10**9])
def test_every_row_is_in_one_batch_within_the_budget(budget):
    draw = random.Random(0)
    lengths = [draw.randint(1, 200) for _ in range(300)]
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    order = [i for batch in batches for i in batch]
    assert order == sorted(order, key=lambda i: (lengths[i], i))


def test_batches_are_as_large_as_the_budget_allows():
    assert plan_batches([4, 4, 4, 4, 9], 12) == [[0, 1, 2], [3], [4]]
    assert plan_batches([5, 100, 5], 10) == [[0, 2], [1]]
    assert plan_batches([], 10) == []


def test_few_rows_of_very_different_lengths_are_not_padded_to_the_longest():
    draw = random.Random(1)
    for rows in (16, 64, 1024):
        lengths = [draw.randint(16, 192) for _ in range(rows)]
        batches = plan_batches(lengths, 2048)
        padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        assert padded <= 1.15 * sum(lengths)
        assert sum(sum(lengths[i] for i in batch) < 128 for batch in batches) <= 1


def test_padding_is_marked_and_positions_count_real_tokens():
    examples = [causal(5, 6), causal(9), causal(1, 2, 3, 4)]
    batch = collate(examples, [2, 0], pad_id=7)
    ids, mask, labels = [5, 6, 7, 7], [1, 1, 0, 0], [-100, 6, -100, -100]
    positions = [0, 1, 1, 1]
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], ids]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], mask]
    assert batch.labels.tolist() == [[-100, 2, 3, 4], labels]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], positions]
    assert batch.rows.tolist() == [2, 0]
    assert batch.token_type_ids is None
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.rows)} == {torch.int64}


def test_classes_and_numbers_are_one_target_a_row():
    classes = [Example(0, "a", "ok", input_ids=[1, 2], target=t, token_type_ids=[0, 1]) for t in (2, 0)]
    batch = collate(classes, [0, 1], 0)
    assert batch.labels.tolist() == [2, 0]
    assert batch.labels.dtype == torch.int64
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [[0, 1], [0, 1]]
    numbers = collate([Example(0, "a", "ok", input_ids=[1], target=0.5)], [0], 0)
    assert numbers.labels.tolist() == [0.5]
    assert numbers.labels.dtype == torch.float32
    assert numbers.to("cpu").labels.tolist() == [0.5]
