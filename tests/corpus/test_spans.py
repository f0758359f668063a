"""Queries about one phrase: the tokens of a span, by hand, for every kind of row and several tokenizers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from datainf_ray.common.errors import RequestError
from datainf_ray.config import QueriesConfig, RowsConfig
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.offsets import Offsets
from datainf_ray.corpus.rows import Row, RowReader
from datainf_ray.corpus.tokens import EncoderSpec, Example
from tests import tiny
from tests.corpus.chats import said
from tests.corpus.test_chat import CHATML, MARKED

TEXT = "The quick brown fox. The quick 漢字 dog"
PAIR = {"prompt": "The quick brown", "completion": " fox jumps, the fox"}
TALK = [
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": " <think>the Paris</think> Paris, again Paris. "},
]


def encode(
    tokenizer: Any,
    kind: str,
    fields: dict[str, Any],
    task: str = "causal-lm",
    max_length: int | None = None,
    **more: Any,
) -> Example:
    spec = EncoderSpec(kind, tokenizer, max_length, key="queries", **more)
    return tiny.task(task).encoder_for(spec).encode([Row(0, "r", fields, None, None)])[0]


@pytest.mark.parametrize("post", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize(
    ("span", "targets", "rule"),
    [
        ("uick", [" quick", " quick"], "within “uick”, in 2 places"),
        ("fox. The", [" fox. The"], "within “fox. The”"),
        ("dog", [" dog"], "within “dog”"),
        ([4, 5], [" quick"], "within characters 4 to 5"),
        ([0, len(TEXT)], [TEXT], f"within characters 0 to {len(TEXT)}"),  # and not EOS
        ("[0, 5]", ["The quick"], "within “[0, 5]”"),  # as CSV has to write it
    ],
)
def test_the_tokens_of_a_phrase_are_the_targets_of_a_text(make_tokenizer, post, span, targets, rule):
    tokenizer = make_tokenizer(post)
    example = encode(tokenizer, "text", {"text": TEXT, "span": span})
    whole = encode(tokenizer, "text", {"text": TEXT})
    assert example.values["input_ids"] == whole.values["input_ids"]
    assert example.status == "ok"
    assert example.rule == f"every token, {rule}"
    assert said(tokenizer, example) == targets
    assert encode(tokenizer, "text", {"text": TEXT, "span": None}).values == whole.values


def test_a_token_of_half_a_character_counts_where_the_character_does(make_tokenizer):
    tokenizer = make_tokenizer()
    example = encode(tokenizer, "text", {"text": TEXT, "span": "字"})
    assert len(tokenizer.tokenize("字")) == 3
    assert sum(label != -100 for label in example.values["labels"]) == 3
    assert said(tokenizer, example) == ["字"]


def test_a_phrase_of_the_completion_is_looked_for_in_the_completion_alone(tokenizer):
    example = encode(tokenizer, "prompt-completion", PAIR | {"span": "fox"})
    assert said(tokenizer, example) == [" fox", " fox"]
    assert example.rule == "everything behind the prompt, within “fox”, in 2 places"
    assert said(tokenizer, encode(tokenizer, "prompt-completion", PAIR | {"span": [0, 4]})) == [" fox"]
    example = encode(tokenizer, "prompt-completion", PAIR | {"span": "quick"})
    assert (example.status, example.detail) == ("no_target_tokens", "span “quick” does not occur in the completion")
    example = encode(tokenizer, "prompt-completion", PAIR | {"span": "quick"}, targets="all")
    assert example.status == "no_target_tokens"


@pytest.mark.parametrize("slow", [False, True])
def test_a_target_of_an_encoder_decoder(make_tokenizer, slow):
    """ByT5's tokens are bytes, and it gives no offsets."""
    tokenizer = ByT5Tokenizer() if slow else make_tokenizer("<s> $A </s>")
    example = encode(tokenizer, "prompt-completion", PAIR | {"span": "the fox"}, "seq2seq-lm")
    assert [text.strip() for text in said(tokenizer, example)] == ["the fox"]
    assert example.rule == "the completion, within “the fox”"
    assert example.values["labels"][-1] == -100  # EOS
    example = encode(tokenizer, "prompt-completion", PAIR | {"span": "the fox"}, "seq2seq-lm", max_length=5)
    assert (example.status, example.detail) == ("no_target_tokens", "all of them lie beyond max_length 5")


def test_without_offsets_the_tokens_of_the_text_up_to_there_tell(make_tokenizer):
    """A tokenizer that keeps its offsets to itself gives what it gives with them."""

    class Silent:
        is_fast = False

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(self, *args: Any, return_offsets_mapping: bool = False, **more: Any) -> Any:
            assert not return_offsets_mapping
            return self.inner(*args, **more)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __len__(self) -> int:
            return len(self.inner)

    for post in ("<s> $A", "<s> $A </s>"):
        tokenizer = make_tokenizer(post)
        for span in ("uick", "The", "dog", "uick brow", "fox.", "漢", [4, 5], [0, len(TEXT)]):
            fields = {"text": TEXT, "span": span}
            want = encode(tokenizer, "text", fields).values
            assert encode(Silent(tokenizer), "text", fields).values == want, span


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("pair", [False, True])
def test_a_phrase_of_what_the_assistant_says_last(tokenizer, template, pair):
    tokenizer.chat_template = template
    kind = "prompt-completion" if pair else "messages"

    def of(span: Any, talk: list[dict[str, Any]] = TALK) -> Example:
        rows = {"prompt": talk[:3], "completion": talk[3:]} if pair else {"messages": talk}
        return encode(tokenizer, kind, rows | {"span": span})

    assert said(tokenizer, of("Paris")) == [" Paris"] * 3
    assert said(tokenizer, of("Paris, again")) == [" Paris, again"]
    assert said(tokenizer, of([12, 17])) == [" Paris"]
    assert TALK[3]["content"][12:17] == "Paris"
    example = of("Paris?")
    problem = "span “Paris?” does not occur in what the assistant says last"
    assert (example.status, example.detail) == ("no_target_tokens", problem)
    example = of("Paris", [*TALK[:3], TALK[3] | {"weight": 0}])
    assert example.status == "no_target_tokens"
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "Paris."}]
    if template == CHATML:
        tokenizer.chat_template = CHATML.replace(
            "m['content']", "m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join"
        )
        assert said(tokenizer, of([6, 8], [*TALK[:3], {"role": "assistant", "content": parts}])) == [" Paris"]


def test_a_template_that_writes_otherwise_is_asked_for_the_text(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | tojson }}\n{% endfor %}"
    talk = [TALK[0], {"role": "assistant", "content": 'Say "Paris" twice'}]
    assert said(tokenizer, encode(tokenizer, "messages", {"messages": talk, "span": "Paris"})) == ["Paris"]
    example = encode(tokenizer, "messages", {"messages": talk, "span": [5, 10]})
    assert example.status == "unreadable"
    assert example.detail.endswith("writes what the assistant says in another way: give span as a text")
    example = encode(tokenizer, "messages", {"messages": talk, "span": '"Paris"'})
    assert (example.status, example.detail) == ("no_target_tokens", "the chat template leaves out what the span is of")


def test_what_is_no_span_is_the_rows_status(tokenizer, write):
    wrong = {
        "span is empty": "",
        "span is a number, neither text nor [start, end]": 5,
        "span is [5], which is no [start, end] with 0 ≤ start < end": [5],
        "span is [5, 5], which is no [start, end] with 0 ≤ start < end": [5, 5],
        "span is [-1, 5], which is no [start, end] with 0 ≤ start < end": [-1, 5],
        "span is [0, True], which is no [start, end] with 0 ≤ start < end": [0, True],
        "span is [0, 99], and the text has 37 characters": [0, 99],
    }
    spans = [*wrong.values(), None, "quick", [4, 9]]
    rows = [{"text": TEXT, "about": span} for span in spans] + [{"text": TEXT}]
    path = write("queries.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = tiny.task("causal-lm")
    corpus = plan_corpus(QueriesConfig(path=path, columns={"span": "about"}), task, "queries")
    assert (corpus.kind, corpus.columns) == ("text", {"text": "text", "span": "about"})
    read = RowReader(corpus).read(corpus.chunks(100)[0])
    spec = EncoderSpec("text", tokenizer, None, key="queries")
    examples = task.encoder_for(spec).encode(read)
    assert [(e.status, e.detail) for e in examples[: len(wrong)]] == [("unreadable", said) for said in wrong]
    assert {e.status for e in examples[len(wrong) :]} == {"ok"}
    assert examples[-1].values == examples[len(wrong)].values  # a null, and none at all
    assert examples[-2].values["labels"] == [
        label if tokenizer.convert_ids_to_tokens(label) == "Ġquick" and k < 5 else -100
        for k, label in enumerate(examples[-2].values["input_ids"])
    ]


@pytest.mark.parametrize("name", ["queries.csv", "queries.parquet"])
def test_spans_of_other_formats(tokenizer, write, name):
    span = "[4, 9]" if name.endswith("csv") else [4, 9]
    corpus = plan_corpus(
        QueriesConfig(path=write(name, [{"text": TEXT, "span": span}]), columns={"span": "span"}),
        tiny.task("causal-lm"),
        "queries",
    )
    (row,) = RowReader(corpus).read(corpus.chunks(100)[0])
    assert said(tokenizer, encode(tokenizer, "text", row.fields)) == [" quick"]


def test_a_span_is_read_where_it_is_asked_for_and_only_of_queries(write):
    task = tiny.task("causal-lm")
    path = write("rows.jsonl", [PAIR | {"span": "fox", "input_ids": [1, 2]}])
    asked = {"span": "span"}
    assert "span" not in plan_corpus(QueriesConfig(path=path), task, "queries").columns  # called so by chance
    corpus = plan_corpus(QueriesConfig(path=path, columns=asked), task, "queries")
    assert (corpus.kind, corpus.columns["span"]) == ("prompt-completion", "span")
    other = plan_corpus(QueriesConfig(path=path, columns={"prompt": "prompt"}), task, "queries")
    assert corpus.fingerprint() != other.fingerprint()
    phrase = {"span": "{{ completion[1:4] }}"}
    assert plan_corpus(QueriesConfig(path=path, columns=phrase), task, "queries").columns["span"] == phrase["span"]
    for columns, key, of, says in (
        (asked, "train", "causal-lm", "train.columns.span: span: is for queries alone: a training row's influence is"),
        (
            asked | {"input_ids": "input_ids"},
            "queries",
            "causal-lm",
            "queries.columns.span: span: rows of input_ids have",
        ),
        (
            asked,
            "queries",
            "sequence-classification",
            "queries.columns: span: task sequence-classification has no such",
        ),
    ):
        config = (RowsConfig if key == "train" else QueriesConfig)(path=path, columns=columns)
        with pytest.raises(RequestError, match=re.escape(says)) as raised:
            plan_corpus(config, tiny.task(of), key)
        assert "\n" not in str(raised.value)


def test_offsets_that_leave_out_whitespace_and_tokens_that_were_added():
    """BOS, "a", " ", "b" less the space before it, "cd", EOS."""
    known = Offsets([(0, 0), (0, 1), (2, 2), (3, 4), (4, 6), (0, 0)])
    assert known.tokens(0, 6) == (1, 5)
    assert known.tokens(1, 2) == (2, 3)
    assert known.tokens(2, 3) == (3, 3)
    assert known.tokens(3, 4) == (3, 4) == known.tokens(2, 4)
    assert known.tokens(5, 6) == (4, 5)
    assert known.tokens(6, 9) == (6, 6)
