"""Rows of tokens: padding, and what stands beside the ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from trl import pack_dataset

from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.tokens import EncoderSpec, Example
from tests import tiny
from tests.styles import by_trl, style


def encode(fields: dict[str, Any], max_length: int | None = None, task: str = "causal-lm", **spec: Any) -> Example:
    encoder = tiny.task(task).encoder_for(EncoderSpec("tokens", None, max_length, tiny.VOCABULARY, **spec))
    return encoder.encode([Row(0, "r", fields, None, None)])[0]


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_no_part_of_the_row_whatever_its_side(left: bool) -> None:
    bare = {"input_ids": [1, 30, 31, 2], "token_type_ids": [0, 0, 1, 1], "completion_mask": [0, 0, 1, 1]}
    beside = {**bare, "position_ids": [0, 1, 2, 3], "attention_mask": [1, 1, 1, 1]}
    padded = {role: [0, 0, 0, *line] if left else [*line, 0, 0, 0] for role, line in beside.items()}
    example = encode(padded)
    assert example == encode(bare)
    assert example.values == {
        "input_ids": [1, 30, 31, 2],
        "labels": [-100, -100, 31, 2],
        "token_type_ids": [0, 0, 1, 1],
    }
    labelled = {role: padded[role] for role in ("input_ids", "attention_mask")}
    labelled["labels"] = [2, 2, 2, 1, 30, 31, 2] if left else [1, 30, 31, 2, 2, 2, 2]  # as labels=input_ids has it
    assert encode(labelled).values["labels"] == [-100, 30, 31, 2]


def test_packed_texts_are_refused_as_trl_packs_them() -> None:
    rows = Dataset.from_dict({"input_ids": [[1, 30, 2], [1, 31, 32, 2]]})
    (packed,) = pack_dataset(rows, seq_length=8, strategy="bfd").to_list()
    assert set(packed) == {"input_ids", "seq_lengths"}
    example = encode(packed)
    assert (example.status, example.detail) == (
        "unreadable",
        "seq_lengths has 2 lengths: only one text in a row can be used",
    )
    alone = pack_dataset(rows.select([0]), seq_length=8, strategy="bfd").to_list()[0]
    assert encode(alone) == encode({"input_ids": [1, 30, 2]})
    (combination,) = (kind for kind in tiny.task("causal-lm").kinds if kind.kind == "tokens")
    assert "seq_lengths" in combination.roles


def test_types_are_cut_with_the_tokens() -> None:
    example = encode({"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1]}, 2)
    assert (example.values["token_type_ids"], example.tokens_cut) == ([0, 1], 1)


def test_masks_say_what_the_targets_are() -> None:
    row = {"input_ids": [1, 30, 31, 32, 2], "assistant_masks": [0, 1, 0, 1, 1], "completion_mask": [0, 0, 0, 0, 1]}
    for targets, labels, rule in (
        ("auto", [-100, -100, -100, -100, 2], "completion_mask and assistant_masks"),
        ("assistant", [-100, 30, -100, 32, 2], "assistant_masks"),
        ("last-assistant", [-100, -100, -100, 32, 2], "assistant_masks, its last run"),
        ("completion", [-100, -100, -100, -100, 2], "completion_mask"),
        ("all", [-100, 30, 31, 32, 2], "every token"),
    ):
        example = encode(row, targets=targets, roles=tuple(row))
        assert (example.values["labels"], example.rule) == (labels, rule)


def test_a_row_that_is_all_padding_has_nothing_to_predict() -> None:
    example = encode({"input_ids": [0, 0], "attention_mask": [0, 0]})
    assert (example.status, example.detail, example.tokens) == ("no_target_tokens", "nothing to predict", 0)


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"attention_mask": [1, 1]}, "3 input_ids but 2 attention_mask"),
        ({"attention_mask": [1, 0, 1]}, "attention_mask hides tokens between others"),
        ({"attention_mask": [1, 1, 2]}, "attention_mask holds 2, which is neither 0 nor 1"),
        ({"position_ids": [0, 1, 0]}, "position_ids has 0 for token 2: only 0, 1, 2, … can be used, one text in a row"),
        ({"position_ids": [1, 2, 3]}, "position_ids has 1 for token 0"),
        ({"token_type_ids": [0, 1, 2]}, "token_type_ids holds 2, which is no token type of the model's 2"),
        ({"token_type_ids": [0, 1, -1]}, "token_type_ids holds -1"),
        ({"token_type_ids": [0, 1, 0.0]}, "token_type_ids holds 0.0"),
        ({"completion_mask": [0, 1]}, "3 input_ids but 2 completion_mask"),
        ({"completion_mask": [0, 1, "x"]}, "completion_mask holds 'x', which is neither 0 nor 1"),
    ],
)
def test_what_cannot_be_honoured_is_named(beside: dict[str, Any], says: str) -> None:
    example = encode({"input_ids": [5, 6, 7], **beside}, token_types=2)
    assert (example.status, example.values) == ("unreadable", {})
    assert example.detail.startswith(says)


def test_a_source_goes_without_its_padding() -> None:
    row = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [7, -100, 8]}
    assert encode(row, task="seq2seq-lm").values == {"input_ids": [5, 6], "labels": [7, -100, 8]}


def test_masks_are_read_as_trl_reads_them() -> None:
    """With completion_only_loss, as it is where a row has a completion; else TRL leaves completion_mask out."""
    draw = np.random.default_rng(0)
    rows = [{"input_ids": draw.integers(3, 60, 9).tolist()} for _ in range(20)]
    for row in rows:
        row |= {role: draw.integers(0, 2, 9).tolist() for role in ("completion_mask", "assistant_masks")}
    for row, expected in zip(rows, by_trl(style("gpt2"), rows), strict=True):
        example = encode(row)
        assert example.values == {"input_ids": row["input_ids"], "labels": [-100, *expected["labels"][1:]]}
