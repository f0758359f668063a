from __future__ import annotations

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig
from datainf_ray.corpus.targets import check_targets, labels_of
from datainf_ray.corpus.tokens import EncoderSpec
from datainf_ray.tasks.register import task_of

IDS = [5, 6, 7, 8, 9]
BOTH = {"completion_mask": [0, 1, 1, 1, 1], "assistant_masks": [0, 1, 0, 1, True]}


@pytest.mark.parametrize(
    ("fields", "targets", "labels", "rule"),
    [
        ({}, "auto", IDS, "every token"),
        ({"labels": [1, -100, 3, 4, 5]} | BOTH, "auto", [1, -100, 3, 4, 5], "labels"),
        ({"labels": [1, -100, 3, 4, 5]} | BOTH, "all", IDS, "every token"),
        (BOTH, "auto", [-100, 6, -100, 8, 9], "completion_mask and assistant_masks"),
        (BOTH, "completion", [-100, 6, 7, 8, 9], "completion_mask"),
        (BOTH, "assistant", [-100, 6, -100, 8, 9], "assistant_masks"),
        ({"labels": IDS} | BOTH, "last-assistant", [-100, -100, -100, 8, 9], "assistant_masks, its last run"),
        ({"assistant_masks": [1, 1, 0, 0, 0]}, "last-assistant", [5, 6, -100, -100, -100], "assistant_masks, its last"),
        ({"assistant_masks": [0] * 5}, "last-assistant", [-100] * 5, "assistant_masks, its last run"),
    ],
)
def test_what_a_row_of_tokens_says_of_its_targets(fields, targets, labels, rule):
    found, told = labels_of(fields, IDS, targets)
    assert found == labels
    assert told.startswith(rule)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1, 1], "5 input_ids but 2 in assistant_masks"),
        ([0, 1, 2, 0, 0], "assistant_masks holds 2, which is neither 0 nor 1"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, says):
    with pytest.raises(ValueError, match=says):
        labels_of({"assistant_masks": mask}, IDS)


@pytest.mark.parametrize(
    ("task", "kind", "targets", "roles", "says"),
    [
        ("causal-lm", "text", "completion", (), "has no meaning for rows of text; use auto or all"),
        ("causal-lm", "tokens", "completion", ("input_ids", "labels"), "rows of tokens need completion_mask for it"),
        ("causal-lm", "tokens", "last-assistant", ("input_ids", "completion_mask"), "need assistant_masks for it"),
        ("causal-lm", "messages", "completion", (), "has no meaning for rows of messages"),
        ("seq2seq-lm", "prompt-completion", "all", (), "use auto or completion"),
        ("seq2seq-lm", "tokens", "all", (), "has no meaning for rows of tokens; use auto"),
        ("sequence-classification", "classification", "all", (), "has no meaning for rows of classification; use auto"),
    ],
)
def test_targets_that_make_no_sense_are_a_wrong_request(task, kind, targets, roles, says):
    spec = EncoderSpec(kind, None, None, targets=targets, key="queries", roles=roles)
    with pytest.raises(RequestError) as error:
        task_of(ModelConfig(base="b", adapter="a", task=task)).encoder_for(spec)
    assert str(error.value).startswith(f"queries.targets: {targets}: ")
    assert says in str(error.value)


def test_targets_that_make_sense_pass():
    for kind, targets in (("text", "all"), ("prompt-completion", "completion"), ("messages", "last-assistant")):
        check_targets(kind, targets, "train")
    check_targets("tokens", "assistant", "train", ("input_ids", "assistant_masks"))
