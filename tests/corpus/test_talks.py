"""Talks in the shapes that corpora have them in, from files to tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import trl.data_utils
from transformers import PreTrainedTokenizerFast

from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.tokens import EncoderSpec, Example
from tests import tiny
from tests.corpus import chats
from tests.corpus.chats import TEMPLATES, assistant, said, user

CAUSAL = tiny.task("causal-lm")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = chats.tokenizer()
    tokenizer.chat_template = TEMPLATES["qwen2_5"]
    return tokenizer


def encoded(tokenizer: Any, path: str | Path, targets: str = "auto", **keys: Any) -> list[Example]:
    corpus = plan_corpus(RowsConfig(path=str(path), **keys), CAUSAL, "train")
    reader = RowReader(corpus)
    spec = EncoderSpec(corpus.kind, tokenizer, None, targets=targets)
    return CAUSAL.encoder_for(spec).encode(reader.read(corpus.chunks(corpus.rows)[0]))


def encode(tokenizer: Any, write: Any, *rows: dict[str, Any], targets: str = "auto", **keys: Any) -> list[Example]:
    return encoded(tokenizer, write("rows.jsonl", list(rows)), targets, **keys)


def ids(tokenizer: Any, talk: list[dict[str, Any]], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(talk, return_dict=True, **options)["input_ids"])


PAIR = [user("Which one?"), assistant("The first.")]
SHAREGPT = [{"from": "human", "value": "Which one?"}, {"from": "gpt", "value": "The first."}]


def test_every_shape_of_one_talk_gives_the_same_tokens(tokenizer: Any, write: Any) -> None:
    want = ids(tokenizer, PAIR)
    shapes: list[dict[str, Any]] = [
        {"messages": PAIR},
        {"messages": [json.dumps(message) for message in PAIR]},
        {"messages": json.dumps(PAIR)},
        {"messages": SHAREGPT},
        {"conversations": SHAREGPT},
        {"conversations": PAIR},
        {"prompt": PAIR[:1], "completion": PAIR[1:]},
        {"prompt": SHAREGPT[:1], "completion": SHAREGPT[1:]},
    ]
    for shape in shapes:
        (example,) = encode(tokenizer, write, shape)
        assert example.values["input_ids"] == want, shape
        assert example.preview == "user: Which one? ⟶ assistant: The first."
        assert said(tokenizer, example)[0].startswith("The first.<|im_end|>")


def test_a_talk_as_axolotl_and_llama_factory_have_it(tokenizer: Any, write: Any) -> None:
    talk = [chats.system("Be kind."), *chats.TALKS["tool results"]]
    want = ids(tokenizer, talk, tools=chats.TOOLS)
    call = chats.CALL["function"]
    spoken = [
        {"from": "human", "value": "Warm there?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "minus two"},
        {"from": "gpt", "value": "It is cold."},
    ]
    # LLaMA-Factory's documented columns: conversations, system, and tools as JSON without an envelope.
    bare = json.dumps([tool["function"] for tool in chats.TOOLS])
    factory = {"conversations": spoken, "system": "Be kind.", "tools": bare}
    trl_row = {"messages": talk, "tools": chats.TOOLS}
    axolotl = {"messages": talk, "tools": json.dumps(chats.TOOLS)}
    for row in (factory, trl_row, axolotl):
        (example,) = encode(tokenizer, write, row)
        assert example.values["input_ids"] == want
        assert said(tokenizer, example) == [
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
            "It is cold.<|im_end|>",
        ]


@pytest.mark.parametrize("flag", ["weight", "train", "training", "trainable", "loss", "loss_weight"])
def test_messages_say_whether_they_were_trained_on(tokenizer: Any, write: Any, flag: str) -> None:
    two = chats.TALKS["two turns"]
    for no in (False, 0):
        talk = [two[0], {**two[1], flag: no}, *two[2:]]
        (example,) = encode(tokenizer, write, {"messages": talk})
        assert said(tokenizer, example) == ["Quite sure.<|im_end|>"]
        assert example.rule == "the assistant's turns, as the template renders them, with the messages' own flags"
        assert example.values["input_ids"] == ids(tokenizer, two)
    (example,) = encode(tokenizer, write, {"messages": [two[0], two[1], {**two[2], flag: 1}, two[3]]})
    assert said(tokenizer, example) == ["The first.<|im_end|>", "Really so?<|im_end|>", "Quite sure.<|im_end|>"]
    (example,) = encode(tokenizer, write, {"messages": [{**message, flag: False} for message in PAIR]})
    assert (example.status, example.detail) == (
        "no_target_tokens",
        "the messages' own flags say that none was trained on",
    )
    (example,) = encode(tokenizer, write, {"messages": [PAIR[0], {**PAIR[1], flag: 0.5}]})
    assert example.detail == f"message 1 has {flag} 0.5, and only 0 and 1, false and true are supported"
    (example,) = encode(tokenizer, write, {"prompt": two[:1], "completion": [{**two[1], flag: False}, *two[2:]]})
    assert "".join(said(tokenizer, example)) == (
        "\n<|im_start|>user\nReally so?<|im_end|>\n<|im_start|>assistant\nQuite sure.<|im_end|>\n"
    )


def test_targets_within_a_message_are_refused(tokenizer: Any, write: Any) -> None:
    detail = [{"begin_offset": 0, "end_offset": 3, "train": False}]
    (example,) = encode(tokenizer, write, {"messages": [PAIR[0], {**PAIR[1], "train_detail": detail}]})
    assert example.detail == "message 1 has train_detail: targets within a message are not supported"


def test_targets_of_a_talk(tokenizer: Any, write: Any) -> None:
    row = {"messages": chats.TALKS["two turns"]}
    whole = ids(tokenizer, row["messages"])
    want = {
        "assistant": ["The first.<|im_end|>", "Quite sure.<|im_end|>"],
        "last-assistant": ["Quite sure.<|im_end|>"],
        "all": [tokenizer.decode(whole[1:])],
    }
    for targets, texts in want.items():
        (example,) = encode(tokenizer, write, row, targets=targets)
        assert (said(tokenizer, example), example.values["input_ids"]) == (texts, whole)
    tokenizer_with_marks = chats.tokenizer()
    tokenizer_with_marks.chat_template = TEMPLATES["qwen2_5_training"]
    (example,) = encode(tokenizer_with_marks, write, row, targets="last-assistant")
    assert said(tokenizer, example) == ["\nQuite sure.<|im_end|>\n"]  # as it marks it


def test_targets_of_a_prompt_and_completion_of_messages(tokenizer: Any, write: Any) -> None:
    two = chats.TALKS["two turns"]
    row = {"prompt": two[:1], "completion": two[1:]}
    behind = (
        "The first.<|im_end|>\n<|im_start|>user\nReally so?<|im_end|>\n<|im_start|>assistant\nQuite sure.<|im_end|>\n"
    )
    want = {
        "auto": [behind],
        "completion": [behind],
        "assistant": ["The first.<|im_end|>", "Quite sure.<|im_end|>"],
        "last-assistant": ["Quite sure.<|im_end|>"],
        "all": [tokenizer.decode(ids(tokenizer, two)[1:])],
    }
    for targets, texts in want.items():
        (example,) = encode(tokenizer, write, row, targets=targets)
        assert said(tokenizer, example) == texts
    (none,) = encode(tokenizer, write, {"prompt": two[:2], "completion": two[2:3]}, targets="assistant")
    assert none.detail == "no message has the role assistant, only user"
    mixed = [
        row,
        {"prompt": "a", "completion": " b"},
        {"prompt": two[:1], "completion": "b"},
        {"prompt": 1, "completion": []},
    ]
    talks, texts_, half, neither = encode(tokenizer, write, *mixed)
    assert (talks.status, texts_.status) == ("ok", "ok")
    assert said(tokenizer, texts_)[0].startswith(" b")
    assert half.detail == "prompt is a list and completion is text: two texts are needed, or two lists of messages"
    assert neither.detail.startswith("prompt is a number and completion is a list: two texts")
    (odd,) = encode(tokenizer, write, {"prompt": two[:1], "completion": [{"role": "assistant"}]})
    assert odd.detail == "completion: message 0 has no content"
    refused = encode(tokenizer, write, {"prompt": "a", "completion": " b"}, targets="assistant")[0]
    assert refused.detail.startswith("targets is assistant, and a prompt and completion of text have no turns")


@pytest.mark.parametrize("name", chats.STOCK)
def test_a_prompt_and_completion_of_messages_are_trls(write: Any, name: str) -> None:
    tokenizer = chats.tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    for kind, talk in chats.TALKS.items():
        if talk[0]["role"] == "assistant":
            continue
        split = next(k for k, message in enumerate(talk) if message["role"] == "assistant")
        row = {"prompt": talk[:split], "completion": talk[split:], "tools": chats.tools_for(kind)}
        (example,) = encode(tokenizer, write, row)
        try:
            prompt = trl.data_utils._tokenize(tokenizer, row["prompt"], tools=row["tools"], add_generation_prompt=True)
            whole = trl.data_utils._tokenize(tokenizer, talk, tools=row["tools"])["input_ids"]
        except Exception:
            assert example.status == "unreadable" or (name == "deepseekv3" and "tool" in kind)
            continue
        begin = trl.data_utils.common_prefix_length(prompt["input_ids"], whole)
        assert example.values["input_ids"] == whole, kind
        assert example.values["labels"] == [-100] * begin + whole[begin:], kind


def calling(tool: str, argument: str, answer: str) -> dict[str, Any]:
    """A row in which the assistant calls a tool with one argument, and the tool is declared."""
    call = {"type": "function", "function": {"name": tool, "arguments": {argument: answer}}}
    schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {
        "messages": [
            user("Which one?"),
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "name": tool, "content": "minus two"},
            assistant("It is cold."),
        ],
        "tools": [{"type": "function", "function": {"name": tool, "description": tool, "parameters": schema}}],
    }


CALLS = [calling("weather", "city", "Oslo"), calling("stock", "ticker", "ACME")]


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet", "r.arrow"])
def test_tools_are_shown_to_the_template(tokenizer: Any, write: Any, name: str) -> None:
    want = [ids(tokenizer, row["messages"], tools=row["tools"]) for row in CALLS]
    # Parquet and Arrow have one type for all rows' arguments, and null where a row has no such field.
    examples = encoded(tokenizer, write(name, CALLS))
    assert [example.values["input_ids"] for example in examples] == want
    assert len(want[0]) > 2 * len(ids(tokenizer, CALLS[0]["messages"]))


def test_a_null_that_a_row_of_json_has_is_the_rows_own(tokenizer: Any, write: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": None}}}
    (example,) = encode(tokenizer, write, {"messages": [user("Warm?"), assistant("", tool_calls=[call])]})
    assert '{"city": null}' in said(tokenizer, example)[0]


def test_rows_may_lack_tools(tokenizer: Any, write: Any) -> None:
    rows = [{"messages": PAIR, "tools": chats.TOOLS}, {"messages": PAIR}, {"messages": PAIR, "tools": None}]
    first, second, third = encode(tokenizer, write, *rows)
    assert first.values["input_ids"] == ids(tokenizer, PAIR, tools=chats.TOOLS)
    assert second.values["input_ids"] == third.values["input_ids"] == ids(tokenizer, PAIR)


def test_the_json_type_of_datasets(tokenizer: Any, tmp_path: Path) -> None:
    feature = datasets.List(datasets.Json())
    talks = [row["messages"] for row in CALLS]
    datasets.Dataset.from_dict({"messages": talks}, datasets.Features({"messages": feature})).to_parquet(
        tmp_path / "rows.parquet"
    )
    assert pq.read_schema(tmp_path / "rows.parquet").field("messages").type.value_type.extension_name == "arrow.json"
    examples = encoded(tokenizer, tmp_path / "rows.parquet")
    assert [example.values["input_ids"] for example in examples] == [ids(tokenizer, talk) for talk in talks]


@pytest.mark.parametrize("form", ["dict", "json"])
def test_arguments_are_given_in_the_form_that_the_template_takes(write: Any, form: str) -> None:
    tokenizer = chats.tokenizer()
    arguments: Any = {"city": "Oslo"} if form == "dict" else '{"city": "Oslo"}'
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    for name in ("deepseekv3", "qwen3_5_think"):  # the one adds it to a text, the other goes through its items
        tokenizer.chat_template = TEMPLATES[name]
        (example,) = encode(tokenizer, write, {"messages": [user("Warm?"), assistant("", tool_calls=[call])]})
        assert "Oslo" in said(tokenizer, example)[0]


def test_parts(tokenizer: Any, write: Any) -> None:
    picture = [{"type": "image", "image": "x.png"}, {"type": "text", "text": "Which one?"}]
    path = write("p.parquet", [{"messages": [{"role": "user", "content": picture}, *chats.TALKS["parts"][1:]]}])
    (example,) = encoded(tokenizer, path)
    assert (example.status, example.detail) == (
        "unreadable",
        "message 0 has a part of type 'image', which a model of text does not take",
    )
    with_parts = chats.tokenizer()
    with_parts.chat_template = TEMPLATES["qwen2_5_vl"]
    (example,) = encode(with_parts, write, {"messages": chats.TALKS["parts"]})
    assert example.values["input_ids"] == ids(with_parts, chats.TALKS["parts"])
    assert said(with_parts, example) == ["The first.<|im_end|>"]


def test_what_a_template_leaves_out_is_told(write: Any) -> None:
    tokenizer = chats.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    (example,) = encode(tokenizer, write, {"messages": PAIR})
    assert (example.status, example.detail) == (
        "no_target_tokens",
        "the chat template leaves out all that the assistant says",
    )


def test_an_assistant_that_says_nothing_has_no_targets(tokenizer: Any, write: Any) -> None:
    empty, number = encode(tokenizer, write, *({"messages": [PAIR[0], assistant(said_)]} for said_ in (" ", 5)))  # type: ignore[arg-type]
    assert (empty.status, empty.detail) == ("no_target_tokens", "the assistant says nothing")
    assert number.detail == "message 1 has a content that is neither a text nor a list of parts"


def test_variables_of_a_rows_own(write: Any) -> None:
    tokenizer = chats.tokenizer()
    tokenizer.chat_template = TEMPLATES["qwen3"] + "{{ mood }}"
    spec = EncoderSpec("messages", tokenizer, None, chat_keywords={"mood": "glad"})
    encoder = CAUSAL.encoder_for(spec)
    path = write("r.jsonl", [{"messages": PAIR}, {"messages": PAIR, "chat_template_kwargs": {"mood": "sad"}}])
    corpus = plan_corpus(RowsConfig(path=path), CAUSAL, "train")
    first, second = encoder.encode(RowReader(corpus).read(corpus.chunks(2)[0]))
    assert first.values["input_ids"] == ids(tokenizer, PAIR, mood="glad")
    assert second.values["input_ids"] == ids(tokenizer, PAIR, mood="sad")
    (example,) = encode(tokenizer, write, {"messages": PAIR, "chat_template_kwargs": {"tokenize": False}})
    assert example.detail == "tokenize is no variable of a template"


#: It writes more before a message that says a certain word.
HUSH = "{% for m in messages %}{{ '<hush>' if 'this' in m.content }}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gptoss", "llama3_2", "phi3", "hush"])
def test_a_talk_of_many_turns_is_rendered_a_few_times(write: Any, monkeypatch: Any, name: str) -> None:
    own = chats.tokenizer()
    calls = []
    plain = type(own).apply_chat_template
    monkeypatch.setattr(type(own), "apply_chat_template", lambda *a, **k: calls.append(1) or plain(*a, **k))
    own.chat_template = {**TEMPLATES, "hush": HUSH}[name]
    for asked in ("Which one?", "<tool_response>this</tool_response>"):  # Qwen3's template looks for this
        turns = ((user(asked), assistant(f"<think>hm</think>No {k}.")) for k in range(300))
        talk = [user("Which one?"), assistant("This."), *(message for turn in turns for message in turn)]
        calls.clear()
        (example,) = encode(own, write, {"messages": talk})
        assert len(said(own, example)) == 301
        assert len(calls) <= 8


def test_a_column_called_system_is_read_beside_conversations_alone(tokenizer: Any, write: Any) -> None:
    (example,) = encode(tokenizer, write, {"messages": PAIR, "system": "Be kind."})
    assert example.values["input_ids"] == ids(tokenizer, PAIR)
    (example,) = encode(tokenizer, write, {"conversations": SHAREGPT, "system": "Be kind."})
    assert example.values["input_ids"] == ids(tokenizer, [chats.system("Be kind."), *PAIR])
    roles = {"messages": "messages", "system": "system"}
    (example,) = encode(tokenizer, write, {"messages": PAIR, "system": "Be kind."}, columns=roles)
    assert example.values["input_ids"] == ids(tokenizer, [chats.system("Be kind."), *PAIR])


def test_a_template_that_raises_is_the_rows_own_trouble(write: Any) -> None:
    tokenizer = chats.tokenizer()
    tokenizer.chat_template = TEMPLATES["gemma"]
    good, bad = encode(tokenizer, write, {"messages": PAIR}, {"messages": [chats.system("Be kind."), *PAIR]})
    assert good.status == "ok"
    assert (bad.status, bad.detail) == ("unreadable", "System role not supported")
