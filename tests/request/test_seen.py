"""Rows as the model sees them: the text is the tokens', the marks are the targets', and hostile rows stay text."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datainf_ray.corpus.tokens import Example
from datainf_ray.request.seen import SeenRows, pieces, seen
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes one by one: a letter beyond ASCII is several tokens, and a token by itself is no text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: k for k, letter in enumerate(["</s>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def example(tokenizer: Any, prompt: str, completion: str, **facts: Any) -> Example:
    before, after = (tokenizer(text)["input_ids"] for text in (prompt, completion))
    ids = [*before, *after, tokenizer.eos_token_id]
    labels = [-100] * len(before) + ids[len(before) :]
    return Example(7, "seven", "ok", values={"input_ids": ids, "labels": labels}, lengths=(len(ids),), **facts)


def test_the_text_of_all_runs_is_that_of_all_tokens(tokenizer):
    row = seen(
        example(tokenizer, "Où est ", "le café ?\n— là", rule="everything behind the prompt"), tokenizer, "train"
    )
    assert str(row).splitlines()[1:] == ["Où est ⟦le café ?", "— là</s>⟧"]
    assert row.targets == len("le café ?\n— là".encode()) + 1
    assert (
        row.heading
        == f"train row 7 · seven · {row.tokens} tokens · {row.targets} targets: everything behind the prompt"
    )
    (sequence,) = row.sequences
    assert tokenizer.decode([token.id for token in sequence.tokens]) == "Où est le café ?\n— là</s>"
    assert [token.target for token in sequence.tokens] == [False] * len("Où est ".encode()) + [True] * row.targets


def test_a_character_that_lies_on_the_border_is_shown_once(tokenizer):
    both = example(tokenizer, "", "né")
    both.values["labels"][:2] = [-100, -100]  # between the two bytes of é
    assert "".join(run.text for run in seen(both, tokenizer, "train").sequences[0].runs).endswith("é</s>")


def test_source_and_target_are_two_sequences_and_a_class_stands_beside(tokenizer):
    source, target = (tokenizer(text)["input_ids"] for text in ("abc", "xyz"))  # of the same length
    pair = Example(0, "a", "ok", values={"input_ids": source, "labels": target}, lengths=(3, 3))
    assert str(seen(pair, tokenizer, "train")).endswith("abc\n── labels ──\n⟦xyz⟧")
    labelled = Example(0, "a", "ok", values={"input_ids": source, "target": 2}, lengths=(3,), rule="the label")
    row = seen(labelled, tokenizer, "queries")
    assert row.heading == "queries row 0 · a · 3 tokens · target: the label · target 2"
    assert str(row).endswith("\nabc")


def test_a_row_that_cannot_be_used_says_why_and_what_was_cut(tokenizer):
    bad = Example(3, "x", "unreadable", "messages is no list")
    assert str(seen(bad, tokenizer, "train")) == "train row 3 · x · 0 tokens · unreadable: messages is no list\n"
    cut = seen(example(tokenizer, "a", "b", tokens_cut=1200), tokenizer, "train")
    assert cut.heading.endswith("1,200 more beyond max_length, which are cut")


def test_hostile_text_stays_text(tokenizer):
    row = example(tokenizer, "<script>alert(1)</script>\x1b[31m\u202e", "ok")
    row.id = "a\x1b[2J\n<b>"
    shown = SeenRows([seen(row, tokenizer, "train")])
    assert "\x1b" not in str(shown[0])
    assert "\u202e" not in str(shown[0])
    assert "\n" not in shown[0].heading
    page = shown._repr_html_()
    assert "<script>" not in page
    assert "<b>a" not in page
    assert "\x1b" not in page
    assert page.count("<span") == 1
    # What a person cannot see the model does, so it is written out.
    assert "\\x1b[31m\\u202e⟦ok" in str(shown[0])
    assert "a\tb\n\\r\\u200bc" in str(seen(example(tokenizer, "a\tb\n\r\u200bc", ""), tokenizer, "train"))


def test_a_row_of_many_runs_is_read_in_pieces(tokenizer):
    ids = tokenizer("é漢😀 x" * 100)["input_ids"]
    for every in (1, 3, 40, 300):  # runs that end within characters, and runs that do not
        labels = [token if k // every % 2 else -100 for k, token in enumerate(ids)]
        row = seen(
            Example(0, "a", "ok", values={"input_ids": ids, "labels": labels}, lengths=(len(ids),)), tokenizer, "t"
        )
        runs = row.sequences[0].runs
        assert len(runs) == -(-len(ids) // every)
        before = ""
        for k, run in enumerate(runs):  # what the tokens add to all that are before them
            text = tokenizer.decode(ids[: (k + 1) * every])
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False)))
            assert run == (text[same:], k % 2 == 1)
            before = text


def test_the_work_for_a_row_grows_with_its_length(tokenizer):
    decoded = []

    class Counting:
        def decode(self, ids, **options):
            decoded.append(len(ids))
            return tokenizer.decode(ids, **options)

        def convert_ids_to_tokens(self, ids):
            return tokenizer.convert_ids_to_tokens(ids)

    ids = tokenizer("ab " * 3000)["input_ids"]
    labels = [token if k // 3 % 2 else -100 for k, token in enumerate(ids)]
    row = seen(Example(0, "a", "ok", values={"input_ids": ids, "labels": labels}, lengths=(len(ids),)), Counting(), "t")
    assert [run.text for run in row.sequences[0].runs] == ["ab "] * 3000
    assert sum(decoded) < 20 * len(ids)


def test_a_long_text_is_short_where_it_must_be(tokenizer):
    row = seen(example(tokenizer, "p" * 5000, "c" * 5000), tokenizer, "train")
    assert row.short(20) == f"{'p' * 10} … {'p' * 10}⟦{'c' * 10} … ccccc</s>⟧".replace("ccccc</s>", "c" * 6 + "</s>")


def test_ids_without_a_tokenizer_are_numbers():
    row = seen(Example(0, "a", "ok", values={"input_ids": [5, 6], "labels": [-100, 6]}, lengths=(2,)), None, "train")
    assert str(row).endswith("\n5⟦ 6⟧")


def test_pieces_are_the_text_token_by_token(tokenizer):
    text = "Où est\nle café ? \u200b\ufffd 🙂"
    ids = tokenizer(text)["input_ids"]
    found = pieces([*ids, tokenizer.eos_token_id], tokenizer)
    assert len(found) == len(ids) + 1
    assert "".join(found) == "Où est\nle café ? \\u200b\ufffd 🙂</s>"
    assert found[:5] == ["O", "", "ù", " ", "e"]  # of two bytes the last has the letter
    assert pieces([5, 6], None) == ["5", " 6"]
    assert pieces([], tokenizer) == []


def test_pieces_of_words_keep_their_spaces(make_words):
    ids = make_words("w1 w2 w1")["input_ids"]
    assert "".join(pieces(ids, make_words)) == make_words.decode(ids)


@pytest.fixture
def make_words() -> Any:
    return tiny.tokenizer()
