from __future__ import annotations

from collections.abc import Callable

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.common.plain_yaml import read_yaml
from tests.corpus.reading import plan, read

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


def test_a_text_and_what_is_unknown(write: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match=r"map them by columns: \{text: content\}$"):
        plan(write("a.jsonl", [{"content": "a"}]))
    with pytest.raises(RequestError, match=r"map them, as in \{text: body\}$"):
        plan(write("a.jsonl", [{"x": "a", "y": "b"}]))
