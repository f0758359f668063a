from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from datainf_ray.corpus import tokens
from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.tokens import EncoderSpec, Example
from datainf_ray.tasks.task import Task
from tests import tiny

CAUSAL = tiny.task("causal-lm")
CLASSES = tiny.task("sequence-classification")


def Encoder(
    tokenizer, kind: str, task: Task, max_length: int | None, vocab_size: int | None = None, **facts: Any
) -> tokens.Encoder:
    if task is CLASSES:
        facts.setdefault("label2id", {})
    return task.encoder_for(EncoderSpec(kind, tokenizer, max_length, vocab_size, facts))


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(number, f"r{number}", f, None, None) for number, f in enumerate(fields)]


def targets(example: Example) -> list[int]:
    return [label for label in example.values["labels"] if label != -100]


@pytest.fixture
def bert() -> PreTrainedTokenizerFast:
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return BertTokenizerFast(tokenizer_object=tokenizer)


def test_text_is_the_tokenizers_own_tokens_then_eos(tokenizer):
    texts = ["The quick brown fox", "Paris 漢字 🙂", "x"]
    examples = Encoder(tokenizer, "text", CAUSAL, 512).encode(rows(*({"text": t} for t in texts)))
    for text, example in zip(texts, examples, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert ids[0] == tokenizer.bos_token_id
        assert (example.status, example.values["input_ids"], example.values["labels"]) == ("ok", ids, [-100, *ids[1:]])


@pytest.mark.parametrize("post", ["<s> $A", "<s> $A </s>", "$A </s>", "$A", None])
def test_eos_is_spelt_out_at_the_end_once_and_the_tokenizer_adds_what_it_adds(make_tokenizer, post):
    tokenizer = make_tokenizer(post)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = tokenizer("a fox", add_special_tokens=False)["input_ids"]
    start = [bos] if post is not None and "<s>" in post else []
    end = [eos] if post is not None and "</s>" in post else []
    for text, said in (("a fox", []), ("a fox</s>", []), ("<s>a fox", [bos]), ("<s>a fox</s>", [bos])):
        (example,) = Encoder(tokenizer, "text", CAUSAL, None).encode(rows({"text": text}))
        assert example.values["input_ids"] == [*start, *said, *plain, eos, *end]
        row = {"prompt": text.removesuffix("</s>"), "completion": " yes" + ("</s>" if "</s>" in text else "")}
        (example,) = Encoder(tokenizer, "prompt-completion", CAUSAL, None).encode(rows(row))
        answer = [*tokenizer(" yes", add_special_tokens=False)["input_ids"], eos, *end]
        assert example.values["input_ids"] == [*start, *said, *plain, *answer]
        assert targets(example) == answer


def test_without_an_eos_none_is_added(tokenizer):
    tokenizer.eos_token = None
    text, both, empty = (
        Encoder(tokenizer, kind, CAUSAL, None).encode(rows(row))[0]
        for kind, row in (
            ("text", {"text": "a fox"}),
            ("prompt-completion", {"prompt": "a", "completion": " fox"}),
            ("prompt-completion", {"prompt": "a", "completion": ""}),
        )
    )
    assert text.values["input_ids"] == tokenizer("a fox")["input_ids"]
    assert targets(both) == tokenizer(" fox", add_special_tokens=False)["input_ids"]
    assert (empty.status, empty.detail) == ("no_target_tokens", "nothing to predict")


def test_a_completion_that_repeats_the_prompt_is_still_the_completion(tokenizer):
    fields = {"prompt": "Paris Paris Paris", "completion": " Paris"}
    (example,) = Encoder(tokenizer, "prompt-completion", CAUSAL, 512).encode(rows(fields))
    answer = [*tokenizer(" Paris", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert example.values["labels"] == [-100] * (example.tokens - len(answer)) + answer


def test_a_prompts_tokens_are_those_of_the_whole_text(tokenizer):
    both = [{"prompt": "The qui", "completion": end} for end in ("ck", " fox", "")]
    for row, example in zip(
        both, Encoder(tokenizer, "prompt-completion", CAUSAL, 512).encode(rows(*both)), strict=True
    ):
        assert example.values["input_ids"] == tokenizer(f"The qui{row['completion']}</s>")["input_ids"]
    assert targets(example) == [tokenizer.eos_token_id]


def test_long_rows_are_cut_from_the_right(tokenizer):
    fields = {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog"}
    whole = Encoder(tokenizer, "prompt-completion", CAUSAL, None).encode(rows(fields))[0]
    prompt = whole.values["labels"].count(-100)
    for length in range(2, whole.tokens + 2):
        (example,) = Encoder(tokenizer, "prompt-completion", CAUSAL, length).encode(rows(fields))
        assert example.values["input_ids"] == whole.values["input_ids"][:length]
        assert example.values["labels"] == whole.values["labels"][:length]
        if length <= prompt:
            assert example.status == "no_target_tokens"
            assert example.detail == f"all of them lie beyond max_length {length}"
        else:
            assert example.status == "ok"


def test_tokens_beyond_max_length_are_counted(tokenizer, bert):
    def cut(tokenizer, kind: str, task: Task, fields: dict[str, Any], **facts: Any) -> int:
        """As counted; and as the row without a limit has them."""
        short, whole = (Encoder(tokenizer, kind, task, n, 400, **facts).encode(rows(fields))[0] for n in (6, None))
        assert short.tokens_cut == whole.tokens - short.tokens
        assert whole.tokens_cut == 0
        return short.tokens_cut

    assert cut(tokenizer, "tokens", CAUSAL, {"input_ids": list(range(9))}) == 3
    assert cut(tokenizer, "tokens", CAUSAL, {"input_ids": list(range(6))}) == 0
    assert cut(tokenizer, "prompt-completion", CAUSAL, {"prompt": "fox " * 9, "completion": "dog"}) == 7
    film = {"text": "good film good film good", "label": 0}
    assert cut(bert, "classification", CLASSES, film, num_labels=2) == 1
    assert (
        cut(bert, "classification", CLASSES, film | {"text": "good film", "text_pair": "bad film"}, num_labels=2) == 1
    )
    assert cut(bert, "classification", CLASSES, film | {"text": "good film bad film"}, num_labels=2) == 0
    assert cut(bert, "tokens", CLASSES, {"input_ids": list(range(8)), "label": 1}, num_labels=2) == 2
    source = {"prompt": "w1 " * 9, "completion": "w2 " * 9}
    assert cut(tiny.tokenizer(), "prompt-completion", tiny.task("seq2seq-lm"), source) == 4 + 5
    given = {"input_ids": list(range(9)), "labels": list(range(8))}
    assert cut(None, "tokens", tiny.task("seq2seq-lm"), given) == 3 + 2


def test_rows_of_no_or_one_token_have_a_status_and_shift_nothing(tokenizer):
    given = [[5, 6], [], [7], [8, 9]]
    examples = Encoder(tokenizer, "tokens", CAUSAL, 512).encode(rows(*({"input_ids": ids} for ids in given)))
    assert [e.status for e in examples] == ["ok", "no_target_tokens", "no_target_tokens", "ok"]
    assert [e.id for e in examples] == ["r0", "r1", "r2", "r3"]
    assert [e.values["input_ids"] for e in examples] == given
    texts = Encoder(tokenizer, "text", CAUSAL, 512).encode(rows({"text": "a"}, {"text": ""}, {"text": " "}))
    assert [e.status for e in texts] == ["ok", "no_target_tokens", "ok"]


def test_given_labels_are_kept(tokenizer):
    encoder = Encoder(tokenizer, "tokens", CAUSAL, 3)
    (example,) = encoder.encode(rows({"input_ids": [5, 6, 7, 8], "labels": [5, -100, 9, 8]}))
    assert (example.values["input_ids"], example.values["labels"]) == ([5, 6, 7], [-100, -100, 9])
    assert encoder.encode(rows({"input_ids": [5, 6], "labels": [5, -100]}))[0].status == "no_target_tokens"


@pytest.mark.parametrize(
    ("kind", "task", "fields"),
    [
        ("text", CAUSAL, {"text": "FOX"}),
        ("prompt-completion", CAUSAL, {"prompt": "FOX", "completion": "x"}),
        ("prompt-completion", CAUSAL, {"prompt": "x", "completion": "FOX"}),
        ("messages", CAUSAL, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "FOX"}]}),
        ("classification", CLASSES, {"text": "x", "text_pair": "FOX", "label": 0}),
        ("prompt-completion", tiny.task("seq2seq-lm"), {"prompt": "FOX", "completion": "x"}),
        ("prompt-completion", tiny.task("seq2seq-lm"), {"prompt": "x", "completion": "FOX"}),
    ],
)
def test_tokens_that_were_added_to_the_tokenizer_alone_are_unreadable(tokenizer, kind, task, fields):
    vocabulary = len(tokenizer)
    tokenizer.add_tokens(["FOX"])
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("FOX", "x")
        return [{**one, "content": plain(one["content"])} for one in value] if isinstance(value, list) else value

    encoder = Encoder(tokenizer, kind, task, 512, vocabulary, **({"num_labels": 2} if task is CLASSES else {}))
    bad, good = encoder.encode(rows(fields, {role: plain(value) for role, value in fields.items()}))
    assert (bad.status, bad.values, bad.foreign) == ("unreadable", {}, True)
    told = f"holds token {vocabulary} ('FOX') of the tokenizer, and the model's vocabulary has {vocabulary} tokens"
    assert told in bad.detail
    assert (good.status, good.foreign) == ("ok", False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, "2 input_ids but 1 labels"),
        ({"input_ids": [1, -1]}, "input_ids holds -1, which is no token id in 0..399"),
        ({"input_ids": [1, 400]}, "input_ids holds 400, which is no token id in 0..399"),
        ({"input_ids": [1, -100]}, "input_ids holds -100"),
        ({"input_ids": [1, 2], "labels": [-100, -1]}, "labels holds -1"),
        ({"input_ids": [1, 2.0]}, "input_ids holds 2.0, which is no token id"),
        ({"input_ids": [1, None]}, "input_ids holds None, which is no token id"),
        ({"input_ids": [1, True]}, "input_ids holds True, which is no token id"),
        ({"input_ids": [[1, 2]]}, r"input_ids holds [1, 2], which is no token id"),
    ],
)
def test_ids_that_are_none_are_unreadable(tokenizer, fields, says):
    bad, good = Encoder(tokenizer, "tokens", CAUSAL, 512, vocab_size=400).encode(rows(fields, {"input_ids": [1, 2]}))
    assert (bad.status, bad.values, bad.tokens) == ("unreadable", {}, 0)
    assert bad.detail.startswith(says)
    assert good.status == "ok"


def test_given_ids_are_held_against_the_tokenizer(tokenizer):
    size = len(tokenizer)
    examples = Encoder(tokenizer, "tokens", CAUSAL, 512).encode(
        rows({"input_ids": [1, size - 1]}, {"input_ids": [size]})
    )
    assert [e.status for e in examples] == ["ok", "unreadable"]


def test_given_ids_need_no_tokenizer_and_may_go_as_far_as_the_model():
    encoder = Encoder(None, "tokens", CAUSAL, 512, vocab_size=1000)
    good, bad = encoder.encode(rows({"input_ids": [999, 3]}, {"input_ids": [1000, 3]}))
    assert (good.status, good.preview, bad.status) == ("ok", "999 3", "unreadable")


def test_bad_rows_keep_their_places(tokenizer):
    given = rows({"text": "a"}, {"text": None}, {}, {"text": "b"})
    given[1].problem = "text is null"
    given[2].problem = "not JSON: x"
    examples = Encoder(tokenizer, "text", CAUSAL, 512).encode(given)
    assert [(e.row, e.id, e.status, e.detail) for e in examples] == [
        (0, "r0", "ok", ""),
        (1, "r1", "unreadable", "text is null"),
        (2, "r2", "unreadable", "not JSON: x"),
        (3, "r3", "ok", ""),
    ]


def test_a_row_that_the_tokenizer_cannot_take_spoils_no_other(tokenizer):
    given = rows({"text": "a fox"}, {"text": "half \ud83d"}, {"text": "a dog"})  # the reader would have found it
    one, bad, two = Encoder(tokenizer, "text", CAUSAL, 512).encode(given)
    assert (one.status, bad.status, two.status) == ("ok", "unreadable", "ok")
    assert one == Encoder(tokenizer, "text", CAUSAL, 512).encode(given[:1])[0]
    assert two.values["input_ids"] == [*tokenizer("a dog")["input_ids"], tokenizer.eos_token_id]


def test_encoding_does_not_depend_on_the_company(tokenizer):
    given = rows(*({"prompt": f"{i} fox " * (i % 5), "completion": f" dog {i}"} for i in range(20)))
    encoder = Encoder(tokenizer, "prompt-completion", CAUSAL, 40)
    assert encoder.encode(given) == [encoder.encode([row])[0] for row in given]


def test_duplicates_keep_their_own_rows(tokenizer):
    given = rows({"text": "same"}, {"text": "same"})
    given[1].id = "r0"
    one, two = Encoder(tokenizer, "text", CAUSAL, 512).encode(given)
    assert (one.row, two.row, one.id, two.id) == (0, 1, "r0", "r0")
    assert one.values["input_ids"] == two.values["input_ids"]


def test_classes_are_encoded_as_the_tokenizer_does(bert):
    encoder = Encoder(bert, "classification", CLASSES, 5, num_labels=2, label2id={"neg": 0, "pos": 1})
    one, two, cut = encoder.encode(
        rows({"text": "good film", "label": "pos"}, {"text": "bad", "label": 0}, {"text": "very " * 9, "label": "1"})
    )
    assert one.values == {"input_ids": [2, 4, 6, 3], "target": 1, "token_type_ids": [0, 0, 0, 0]}
    assert (two.values["input_ids"], two.values["target"], two.preview) == ([2, 5, 3], 0, "[neg] bad")
    assert (cut.values["input_ids"], cut.values["target"]) == ([2, 7, 7, 7, 3], 1)


def test_pairs_have_two_kinds_of_tokens(bert):
    encoder = Encoder(bert, "classification", CLASSES, 6, num_labels=1)
    one, two = encoder.encode(
        rows({"text": "good", "text_pair": "bad", "label": 0.5}, {"text": "very " * 9, "text_pair": "bad", "label": 2})
    )
    assert (one.values["input_ids"], one.values["token_type_ids"]) == ([2, 4, 3, 5, 3], [0, 0, 0, 1, 1])
    assert one.rule == "the label"
    assert (one.values["target"], one.preview) == (0.5, "[0.5] good | bad")
    assert (two.values["input_ids"], two.values["target"]) == ([2, 7, 7, 3, 5, 3], 2.0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"text": "", "label": 0}, "text is empty"),
        ({"text": "good", "label": 2}, "label 2 is not in 0..1"),
        ({"text": "good", "label": "great"}, "label 'great' is none of the model's"),
    ],
)
def test_a_class_row_without_text_or_label_is_unreadable(bert, fields, says):
    bad, good = Encoder(bert, "classification", CLASSES, 8, num_labels=2).encode(
        rows(fields, {"text": "a", "label": 1})
    )
    assert (bad.status, bad.values, bad.tokens) == ("unreadable", {}, 0)
    assert bad.detail.startswith(says)
    assert good.status == "ok"


def test_a_row_without_a_label_has_a_status(bert):
    encoder = Encoder(bert, "classification", CLASSES, 8, num_labels=2)
    none, good = encoder.encode(rows({"text": "good", "label": -1}, {"text": "good", "label": 1}))
    assert (none.status, none.detail, good.status) == ("unreadable", "label -1 says that there is none", "ok")


def test_given_ids_of_a_class_have_their_types_and_no_padding(bert):
    encoder = Encoder(bert, "tokens", CLASSES, 5, 8, num_labels=3)
    for side in ("right", "left"):
        bert.padding_side = side
        pair = dict(bert("good", "bad film", padding="max_length", max_length=9))
        assert 0 in pair["attention_mask"]
        (example,) = encoder.encode(rows({**pair, "label": 2}))
        assert example.values == {"input_ids": [2, 4, 3, 5, 6], "token_type_ids": [0, 0, 0, 1, 1], "target": 2}
        assert example.tokens_cut == 1
    bad = {"input_ids": [2, 4, 3], "token_type_ids": [0, 0, 8], "label": 2}
    assert encoder.encode(rows(bad))[0].detail == "token_type_ids holds 8, which is no token type of the model's 8"


def test_given_ids_may_have_a_class(bert):
    encoder = Encoder(bert, "tokens", CLASSES, 2, num_labels=3)
    good, empty = encoder.encode(rows({"input_ids": [2, 4, 3], "label": 2}, {"input_ids": [], "label": 2}))
    assert (good.values, good.preview) == ({"input_ids": [2, 4], "target": 2}, "[2] [CLS] good")
    assert (empty.status, empty.detail) == ("unreadable", "there are no tokens")


def test_previews_are_one_short_line(tokenizer):
    def preview(kind: str, fields: dict[str, Any], problem: str | None = None) -> str:
        row = Row(0, "r", fields, None, problem)
        return Encoder(tokenizer, kind, CAUSAL, 512).encode([row])[0].preview

    assert preview("text", {"text": " two\nlines "}) == "two lines"
    assert preview("prompt-completion", {"prompt": "a\n", "completion": " b"}) == "a ⟶ b"
    assert preview("prompt-completion", {"prompt": ["a"], "completion": "b"}, "prompt is a list") == "⟶ b"
    assert preview("text", {"text": None}, "text is null") == ""
    assert preview("tokens", {"input_ids": tokenizer("a fox")["input_ids"]}) == "<s>a fox"
    assert len(preview("text", {"text": "word " * 1000})) <= 300


def test_encoded_rows_are_plain_integers(tokenizer, bert):
    examples = [
        *Encoder(tokenizer, "text", CAUSAL, 512).encode(rows({"text": "a"})),
        *Encoder(bert, "classification", CLASSES, 8, num_labels=2).encode(rows({"text": "good", "label": True})),
    ]
    for example in examples:
        listed = [value for value in example.values.values() if isinstance(value, list)]
        assert {type(i) for value in listed for i in value} == {int}
        assert not isinstance(example.values.get("target"), bool | np.generic)
