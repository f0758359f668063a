from __future__ import annotations

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig
from datainf_ray.corpus.columns import USUAL, choose_columns
from datainf_ray.corpus.files import SourceFile
from datainf_ray.tasks.register import MODULES, OTHERS, task_of
from tests import tiny


def choose(*columns: tuple[str, ...], task: str = "causal-lm", **asked: str) -> tuple[str, dict[str, str]]:
    files = [SourceFile(f"{i}.jsonl", f"{i}.jsonl", "jsonl", None, 1, "", 1, names) for i, names in enumerate(columns)]
    combination, taken = choose_columns(asked, files, tiny.task(task), "train")
    return combination.kind, taken


@pytest.mark.parametrize(
    ("there", "kind", "columns"),
    [
        (("text", "input_ids", "prompt", "completion", "messages"), "messages", ("messages",)),
        (("text", "input_ids", "prompt", "completion"), "prompt-completion", ("prompt", "completion")),
        (("text", "input_ids", "labels", "prompt"), "tokens", ("input_ids", "labels")),
        (("text", "input_ids"), "tokens", ("input_ids",)),
        (("text", "completion", "labels"), "text", ("text",)),
    ],
)
def test_causal_rows_are_taken_in_order_of_preference(there, kind, columns):
    assert choose(there) == (kind, {name: name for name in columns})


def test_classification_takes_a_label_of_either_name():
    task = "sequence-classification"
    assert choose(("text", "label"), task=task) == ("classification", {"text": "text", "label": "label"})
    assert choose(("text", "labels", "text_pair"), task=task) == (
        "classification",
        {"text": "text", "label": "labels", "text_pair": "text_pair"},
    )
    assert choose(("input_ids", "labels"), task=task) == ("tokens", {"input_ids": "input_ids", "label": "labels"})
    assert choose(("s", "y"), task=task, text="s", labels="y") == ("classification", {"text": "s", "label": "y"})


def test_a_request_names_its_columns_and_required_ones_are_filled_in():
    there = ("question", "answer", "messages", "text", "label", "text_pair", "s")
    assert choose(there, prompt="question", completion="answer")[0] == "prompt-completion"
    assert choose(there, text="s") == ("text", {"text": "s"})
    # An optional role that an explicit request leaves out is left out.
    assert choose(there, task="sequence-classification", text="s")[1] == {"text": "s", "label": "label"}


def test_what_a_trainer_gives_the_template_is_taken_whatever_else_is_called_otherwise():
    there = ("convo", "tools", "system", "chat_template_kwargs", "functions")
    own = {"messages": "convo", "tools": "tools", "chat_template_kwargs": "chat_template_kwargs"}
    assert choose(there, messages="convo") == ("messages", own)
    assert choose(there, messages="convo", tools="functions") == ("messages", own | {"tools": "functions"})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": "question"}, r"train.columns: prompt: task causal-lm takes messages.* or prompt\+completion.* or"),
        ({"text": "text", "prompt": "question"}, r"train.columns: text, prompt: task causal-lm takes messages.* or"),
        ({"text": "txet"}, r"train.columns.text: txet: no such column in 0.jsonl, which has .*; did you mean 'text'\?"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(asked, says):
    with pytest.raises(RequestError, match=says):
        choose(("question", "text"), **asked)


def test_a_column_that_one_file_lacks_is_refused_with_the_files_name():
    with pytest.raises(RequestError, match=r"train.path: 1.jsonl: has no column 'completion', which other files"):
        choose(("prompt", "completion"), ("prompt", "answer"))
    with pytest.raises(RequestError, match=r"train.columns.text: a: no such column in 1.jsonl, which has b"):
        choose(("a",), ("b",), text="a")


def test_rows_of_another_task_name_it():
    with pytest.raises(
        RequestError, match=r"there are text and label, and task causal-lm would not read label; set model.t"
    ):
        choose(("text", "label", "id"))
    assert choose(("text", "label"), text="text")[0] == "text"  # it was said
    with pytest.raises(
        RequestError, match=r"completion and label, as KTO has them, .* by columns: {prompt: prompt, comp"
    ):
        choose(("prompt", "completion", "label"))
    assert choose(("prompt", "completion", "label"), prompt="prompt")[0] == "prompt-completion"
    assert choose(("messages", "text", "label"))[0] == "messages"
    with pytest.raises(
        RequestError, match=r"label: task causal-lm has no such role, model.task sequence-classification ha"
    ):
        choose(("text", "topic"), label="topic")
    with pytest.raises(RequestError, match=r"but they are what model.task sequence-classification takes; .*seq2seq-lm"):
        choose(("text", "labels"), task="seq2seq-lm")
    for there in (("prompt", "completion"), ("messages",), ("text",), ("input_ids",)):
        with pytest.raises(RequestError, match=r"but they are what model.task causal-lm takes; task sequence-cl"):
            choose(there, task="sequence-classification")


def test_what_a_corpus_usually_is_for_takes_it():
    for roles, task in USUAL:
        assert choose(roles, task=task)


@pytest.mark.parametrize("name", [*OTHERS, "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "Causal-LM", "causl-lm"])
def test_another_name_of_a_task_is_told(name):
    with pytest.raises(RequestError, match=r"there is no such task; (it is called \S+ here|did you mean 'causal-lm')"):
        task_of(ModelConfig(base="b", adapter="a", task=name))
    assert OTHERS.get(name, "causal-lm") in MODULES


def test_columns_without_a_role_are_listed():
    with pytest.raises(RequestError, match=r"train.columns: none of question, reply is .*causal-lm takes.*map them"):
        choose(("question", "reply"))
