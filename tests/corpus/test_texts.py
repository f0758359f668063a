"""Text, and prompts with their completions, token for token as TRL's `SFTTrainer` prepares them."""

from __future__ import annotations

from typing import Any

import pytest

from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.texts import begin_of_completion
from datainf_ray.corpus.tokens import EncoderSpec, Example
from tests import tiny
from tests.styles import STYLES, by_trl, style

#: Prompt and completion; BOS and EOS stand for the tokenizer's own.
PAIRS = [
    ("What is the capital of France?", " Paris, the world's own."),
    ("Once there was a", " dog."),
    ("Once there was a ", "dog."),
    ("Once there was a d", "og jumps"),
    ("The quick brown", "fox"),
    ("1234 56", "78, 9"),
    ("def add(a, b):\n", "\n    return a + b\n"),
    ("def add(a, b):\n    ", "return a + b\n\n"),
    ("cafe", "\u0301 is normalised with the letter before it"),
    ("漢", "字 and bytes 🙂"),
    ("", "no prompt at all"),
    ("no completion at all", ""),
    ("", ""),
    (" ", " "),
    ("BOSbegins with one", " and ends"),
    ("BOS BOStwo of them", " and ends"),
    ("ends with one", " of its ownEOS"),
    ("EOS in the EOS middle", " of bothEOS of them"),
    ("the prompt endsEOS", "and it goes on"),
    ("the prompt endsEOS", ""),
    ("spaces before the end   ", "   EOS"),
    ("spaces before the end", " goes   "),
]
TEXTS = [prompt + completion for prompt, completion in PAIRS if prompt + completion]


def spelt(text: str, tokenizer: Any) -> str:
    return text.replace("BOS", tokenizer.bos_token or "").replace("EOS", tokenizer.eos_token or "")


def encode(tokenizer: Any, kind: str, rows: list[dict[str, str]], targets: str = "auto") -> list[Example]:
    spec = EncoderSpec(kind, tokenizer, None, targets=targets)
    return (
        tiny.task("causal-lm").encoder_for(spec).encode([Row(k, str(k), row, None, None) for k, row in enumerate(rows)])
    )


def compared(examples: list[Example], expected: list[dict[str, list[int]]]) -> None:
    """ids, and labels but for the first, which nothing predicts."""
    for example, row in zip(examples, expected, strict=True):
        assert example.values["input_ids"] == row["input_ids"]
        assert example.values["labels"] == [-100, *row["labels"][1:]]


@pytest.mark.parametrize("name", STYLES)
def test_prompt_and_completion_are_what_trl_trains_on(name: str) -> None:
    tokenizer = style(name)
    rows = [{"prompt": spelt(p, tokenizer), "completion": spelt(c, tokenizer)} for p, c in PAIRS]
    expected = by_trl(tokenizer, rows)
    compared(encode(tokenizer, "prompt-completion", rows), expected)
    everything = [{**row, "labels": row["input_ids"]} for row in expected]
    compared(encode(tokenizer, "prompt-completion", rows, "all"), everything)


@pytest.mark.parametrize("name", STYLES)
def test_text_is_what_trl_trains_on(name: str) -> None:
    tokenizer = style(name)
    rows = [{"text": spelt(text, tokenizer)} for text in TEXTS]
    compared(encode(tokenizer, "text", rows), by_trl(tokenizer, rows))


@pytest.mark.parametrize("name", STYLES)
def test_a_text_is_one_plain_call_of_the_tokenizer(name: str) -> None:
    """By hand: whatever the tokenizer puts before a text, if it spells out a BOS too; EOS's own text at its end."""
    tokenizer = style(name)
    for text in ("a fox", spelt("BOSa fox", tokenizer), spelt("a foxEOS", tokenizer)):
        (example,) = encode(tokenizer, "text", [{"text": text}])
        whole = text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token
        assert example.values["input_ids"] == tokenizer(whole)["input_ids"]
        assert example.rule == "every token"


def test_a_bos_that_a_text_spells_out_is_there_twice_where_the_tokenizer_puts_one() -> None:
    for name, count in (("llama2", 2), ("llama3", 2), ("gemma", 2), ("gpt2", 1)):
        tokenizer = style(name)
        (example,) = encode(tokenizer, "text", [{"text": f"{tokenizer.bos_token}a fox"}])
        assert example.values["input_ids"][: count + 1].count(tokenizer.bos_token_id) == count


def test_nothing_stands_between_prompt_and_completion() -> None:
    """What sentencepiece puts before a text stood before the completion too, when that was a text by itself."""
    tokenizer = style("llama2")
    (example,) = encode(tokenizer, "prompt-completion", [{"prompt": "Once there was a", "completion": " dog."}])
    assert example.values["input_ids"] == tokenizer("Once there was a dog.</s>")["input_ids"]
    assert tokenizer.decode([label for label in example.values["labels"] if label != -100]) == " dog.</s>"
    assert example.rule == "everything behind the prompt"


def test_a_token_on_both_sides_of_the_border_is_the_completions() -> None:
    tokenizer = style("gpt2")
    (example,) = encode(tokenizer, "prompt-completion", [{"prompt": "Once there was a ", "completion": "dog."}])
    targets = [label for label in example.values["labels"] if label != -100]
    assert tokenizer.decode(targets) == " dog.<|endoftext|>"


@pytest.mark.parametrize(
    ("prompt", "whole", "expected"),
    [([1, 5], [1, 5, 6], 2), ([1, 5, 2], [1, 5, 6, 2], 2), ([], [5], 0), ([5, 6], [7, 6], 0), ([5, 6], [5], 1)],
)
def test_a_completion_begins_where_the_tokens_differ(prompt: list[int], whole: list[int], expected: int) -> None:
    assert begin_of_completion(prompt, whole) == expected
