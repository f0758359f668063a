"""Where rows are cut, and what is told of it: through the whole of a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import RowsConfig, load_config
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.planning.forecast import forecast, render
from datainf_ray.request.cuts import limit_of
from datainf_ray.request.job import Job, prepare
from datainf_ray.request.sampled import describe
from tests import tiny


@pytest.mark.parametrize(
    ("asked", "model", "rotary", "limit"),
    [
        (None, None, False, None),
        (None, 8, True, 8),
        (5, None, False, 5),
        (5, 8, True, 5),
        (9, 8, False, 8),
        (9, 8, True, 9),
    ],
)
def test_rows_are_cut_where_asked_and_else_where_the_model_ends(
    asked: int | None, model: int | None, rotary: bool, limit: int | None
) -> None:
    assert limit_of(RowsConfig(path="a", max_length=asked), ModelFacts((), 0, max_length=model, rotary=rotary)) == limit


def job(folder: Path, model: dict[str, Any], words: int, **settings: Any) -> Job:
    """A corpus of two texts: of one word, and of so many."""
    for name in ("train", "queries"):
        texts = ["w1 " * words if name == "train" else "w1", "w1"]
        lines = [json.dumps({"text": text.strip(), "name": f"{k}"}) + "\n" for k, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    config = tiny.configuration(folder, model, folder / "run")
    return prepare(load_config(config, **settings), writable=False)


def test_rows_cut_where_a_rotary_models_positions_go_on_are_told(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    made = job(tmp_path, tiny_llama, 70)
    assert [example.tokens_cut for example in made.examples["train"]] == [8, 0]  # BOS, 70 words and EOS; 64 positions
    said = describe(made.looked["train"], "train")
    assert said == (
        "of the 2 training rows that were looked at 1 is longer than max_length, and cut; they are cut at the model's "
        "max_position_embeddings, 64, though its positions are rotary and go on: set train.max_length where the "
        "training had longer rows"
    )
    assert said in " ".join(render(forecast(made)).split())
    longer = job(tmp_path, tiny_llama, 70, **{"train.max_length": 80})
    assert [example.tokens for example in longer.examples["train"]] == [72, 3]
    assert describe(longer.looked["train"], "train") is None


def test_rows_cut_where_other_positions_end_are_counted(tmp_path: Path) -> None:
    made = job(tmp_path, tiny.save_model(tmp_path, "gpt2"), 70, **{"train.max_length": 80})
    assert [example.tokens_cut for example in made.examples["train"]] == [8, 0]
    said = "of the 2 training rows that were looked at 1 is longer than max_length, and cut"
    assert describe(made.looked["train"], "train") == said


def test_a_limit_that_the_training_may_have_had_is_told_and_not_applied(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    (tmp_path / "adapter" / "README.md").write_text("---\nsequence_len: 64\n---\n")  # as many as the model takes
    assert describe(job(tmp_path, model, 5).looked["train"], "train") is None
    (tmp_path / "adapter" / "README.md").write_text("---\nsequence_len: 4\n---\n")
    made = job(tmp_path, model, 5)
    assert [example.tokens for example in made.examples["train"]] == [7, 3]
    said = (
        "sequence_len in the adapter's README.md is 4, and the training may have cut its rows there: 1 of these are "
        "longer, and train.max_length: 4 would cut them"
    )
    assert describe(made.looked["train"], "train") == f"2 training rows were looked at; {said}"
    assert said in " ".join(render(forecast(made)).split())
    assert "0 of these" in str(describe(made.looked["queries"], "queries"))
    assert describe(job(tmp_path, model, 5, **{"train.max_length": 6}).looked["train"], "train") == (
        "of the 2 training rows that were looked at 1 is longer than max_length, and cut"
    )


def test_rows_of_a_model_without_a_limit_are_not_cut(tmp_path: Path) -> None:
    """XLNet says −1; so did its rows: all of a row but its last token was seen."""
    made = job(tmp_path, tiny.save_model(tmp_path, "llama", settings={"max_position_embeddings": -1}), 70)
    assert [example.tokens for example in made.examples["train"]] == [72, 3]


def test_a_tokenizer_with_tokens_that_the_model_has_not_is_a_wrong_request(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|im_start|>"])
    tokenizer.save_pretrained(tiny_llama["adapter"])
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    prepare(load_config(config), writable=False)  # no row has it
    with (tmp_path / "queries.jsonl").open("a") as file:
        file.write('{"prompt": "w1", "completion": "<|im_start|>w2", "name": "marked"}\n')
    with pytest.raises(RequestError) as error:
        prepare(load_config(config), writable=False)
    assert str(error.value) == (
        f"model.adapter: {tiny_llama['adapter']}: does not fit its tokenizer: marked: unreadable: input_ids holds "
        f"token {tiny.VOCABULARY} ('<|im_start|>') of the tokenizer, and the model's vocabulary has {tiny.VOCABULARY} "
        "tokens; use the tokenizer and the base that the adapter was trained with"
    )


def test_the_default_of_trl_is_told_where_a_row_is_longer(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama", settings={"max_position_embeddings": 2048})
    readme = tmp_path / "adapter" / "README.md"
    readme.write_text("---\ntags:\n- lora\n- sft\n- trl\n---\n")
    assert describe(job(tmp_path, model, 1000).looked["train"], "train") is None
    assert str(describe(job(tmp_path, model, 1100).looked["train"], "train")).startswith(
        "2 training rows were looked at; the default of TRL, which the adapter's README.md names, is 1,024, and"
    )
    readme.write_text("---\ntags:\n- lora\n- dpo\n- trl\n---\n")
    assert describe(job(tmp_path, model, 1100).looked["train"], "train") is None
