from __future__ import annotations

from collections.abc import Callable

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.common.plain_yaml import read_yaml
from tests.corpus.reading import plan, read

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}

#: Columns of well-known datasets, the task, and what the model is to see of one row.
KNOWN = {
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "causal-lm", "Add.\n\n1 and 2", "3"),
    "alpaca, no input": ({"instruction": "Hi.", "input": "", "output": "Ho."}, "causal-lm", "Hi.", "Ho."),
    "dolly": (
        {"instruction": "Who?", "context": "I am.", "response": "You.", "category": "qa"}, "seq2seq-lm",
        "Who?\n\nI am.", "You.",
    ),
    "gsm8k": ({"question": "1+1?", "answer": "2"}, "causal-lm", "1+1?", "2"),
    "dpo": ({"prompt": "Hi", "chosen": "Ho", "rejected": "He"}, "causal-lm", "Hi", "Ho"),
    "capitals": ({"Prompt": "Hi", "Completion": "Ho"}, "causal-lm", "Hi", "Ho"),
    "spaces": ({"prompt": "Hi", " completion": "Ho"}, "causal-lm", "Hi", "Ho"),
    "within": ({"data": {"prompt": "Hi", "completion": "Ho"}, "n": 1}, "causal-lm", "Hi", "Ho"),
    "openai, preferences": (
        {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]},
        "causal-lm", [USER], [ASSISTANT],
    ),
    "metamath": ({"query": "1+1?", "response": "2", "type": "x"}, "causal-lm", "1+1?", "2"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_the_error_names_the_mapping_that_is_right(write: Callable[..., str], name: str) -> None:
    row, task, prompt, completion = KNOWN[name]
    path = write("a.jsonl", [row])
    with pytest.raises(RequestError) as caught:
        plan(path, task)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("queries.columns: none of ")
    mapping = read_yaml(line.partition("map them by ")[2])  # as it is written into a configuration
    (made,) = read(plan(path, task, **mapping))
    assert made.fields == {"prompt": prompt, "completion": completion}


@pytest.mark.parametrize("name", ["dialog", "Conversation", "chosen"])
def test_the_error_names_the_messages(write: Callable[..., str], name: str) -> None:
    path = write("a.jsonl", [{name: [USER, ASSISTANT], "rejected": [USER], "tools": [{"name": "f"}]}])
    with pytest.raises(RequestError) as caught:
        plan(path)
    (made,) = read(plan(path, **read_yaml(str(caught.value).partition("map them by ")[2])))
    assert made.fields == {"messages": [USER, ASSISTANT], "tools": [{"name": "f"}]}


def test_the_error_is_short_enough_to_be_whole(write: Callable[..., str]) -> None:
    with pytest.raises(RequestError) as caught:
        plan(write("a.jsonl", [{"instruction": "a", "input": "b", "output": "c"}]))
    assert "task causal-lm takes messages or prompt+completion or input_ids or text: map them by" in str(caught.value)
    assert "…" not in str(caught.value)


def test_a_text_and_what_is_unknown(write: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match=r"map them by columns: \{text: content\}$"):
        plan(write("a.jsonl", [{"content": "a"}]))
    with pytest.raises(RequestError, match=r"map them, as in \{text: body\}$"):
        plan(write("a.jsonl", [{"x": "a", "y": "b"}]))
