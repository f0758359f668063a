"""A corpus of which no row can be used is a wrong request, told before anything is started."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.first_rows import Sampled
from datainf_ray.request.job import Job, prepare
from tests import tiny
from tests.runs_of import COMMAND

Rows = list[dict[str, Any]]


def asked(folder: Path, model: dict[str, Any], name: str, **keys: Any) -> dict[str, Any]:
    config = tiny.configuration(folder, model, folder / "run")
    config[name].update(keys)
    return config


def told(config: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        prepare(load_config(config))
    assert "\n" not in str(caught.value)
    return caught.value


def save(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flipped(path: Path) -> Path:
    """A Parquet file whose footer is whole and whose pages are not."""
    rows = 20
    table = pa.table({"prompt": ["w1 w2"] * rows, "completion": [f"w{k}" for k in range(rows)], "name": ["n"] * rows})
    pq.write_table(table, path)
    content = bytearray(path.read_bytes())
    content[4:100] = bytes(byte ^ 0xFF for byte in content[4:100])
    path.write_bytes(content)
    return path


PAIRS: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "all completions null": (lambda k: {"prompt": "w1", "completion": None}, "unreadable: completion is null"),
    "all ids out of range": (lambda k: {"input_ids": [1, 9999]}, "unreadable: input_ids holds 9999, which is no"),
    "empty texts": (lambda k: {"text": ""}, "no_target_tokens: nothing to predict"),
    "no target": (lambda k: {"input_ids": [1, 2], "labels": [-100, -100]}, "no_target_tokens: nothing to predict"),
    "numbers for text": (lambda k: {"text": k}, "unreadable: text is a number, not text"),
    "a hostile value": (lambda k: {"input_ids": ["\x1b[2J\u202e"]}, "unreadable: input_ids holds"),
}


@pytest.mark.parametrize("name", ["train", "queries"])
@pytest.mark.parametrize("case", PAIRS)
def test_rows_none_of_which_can_be_used(tmp_path: Path, tiny_llama: dict[str, Any], case: str, name: str) -> None:
    row, said = PAIRS[case]
    path = save(tmp_path / f"{name}.jsonl", [{"name": f"n{k}", **row(k)} for k in range(7)])
    error = told(asked(tmp_path, tiny_llama, name))
    assert (error.key, error.value) == (f"{name}.path", str(path))
    assert error.problem.startswith(f"none of its 7 rows can be used: row 0: {said}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train", "queries"])
def test_a_limit_that_no_target_is_within(tmp_path: Path, tiny_llama: dict[str, Any], name: str) -> None:
    error = told(asked(tmp_path, tiny_llama, name, max_length=2))
    rows = {"train": 40, "queries": 4}[name]
    assert (error.key, error.value, error.remedy) == (f"{name}.max_length", 2, "use a larger one")
    assert error.problem == (
        f"none of its {rows} rows can be used: row 0: no_target_tokens: all of them lie beyond max_length 2"
    )


@pytest.mark.parametrize("name", ["train", "queries"])
def test_a_parquet_file_with_flipped_bits(tmp_path: Path, tiny_llama: dict[str, Any], name: str) -> None:
    error = told(asked(tmp_path, tiny_llama, name, path=str(flipped(tmp_path / "rows.parquet"))))
    assert error.key == f"{name}.path"
    assert error.problem.startswith("none of its 20 rows can be used: row 0: unreadable: cannot be decoded: ")


@pytest.mark.parametrize("name", ["train", "queries"])
def test_labels_none_of_which_is_the_models(tmp_path: Path, name: str) -> None:
    model = tiny.save_model(tmp_path, "bert", labels=3)
    for corpus in ("train", "queries"):
        tiny.write_rows(tmp_path / f"{corpus}.jsonl", 6, 1, labels=3)
    save(tmp_path / f"{name}.jsonl", [{"name": f"n{k}", "text": "w1", "label": None} for k in range(5)])
    error = told(asked(tmp_path, model, name))
    assert (error.key, error.problem) == (
        f"{name}.path",
        "none of its 5 rows can be used: row 0: unreadable: label is null",
    )
    save(tmp_path / f"{name}.jsonl", [{"name": f"n{k}", "text": "w1", "label": "often"} for k in range(5)])
    assert told(asked(tmp_path, model, name)).key == f"{name}.columns.label"


@pytest.mark.parametrize("good", [64, 500, 3999])
def test_rows_from_all_over_are_looked_at_where_the_first_cannot_be_used(
    tmp_path: Path, tiny_llama: dict[str, Any], good: int
) -> None:
    """From row `good` on all can be used: behind the first ones, in the middle, or the last alone; in two files."""
    rows = [{"prompt": "w1", "completion": "w2" if k >= good else None} for k in range(4000)]
    (tmp_path / "rows").mkdir()
    save(tmp_path / "rows" / "a.jsonl", rows[:70])
    save(tmp_path / "rows" / "b.jsonl", rows[70:])
    job = prepare(load_config(asked(tmp_path, tiny_llama, "train", path=str(tmp_path / "rows"), id=None)))
    seen = [example.row for example in job.examples["train"]]
    assert seen[:64] == list(range(64))
    assert seen[64] == 64
    assert seen[-1] == 3999
    assert seen == sorted(set(seen))
    assert len(seen) == 128
    assert [e.row for e in job.examples["train"] if e.status == "ok"] == [k for k in seen if k >= good]
    assert job.sample


def test_of_a_corpus_in_which_no_row_is_found_the_number_is_told(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    save(tmp_path / "train.jsonl", [{"name": "n", "prompt": "w1", "completion": None}] * 500)
    assert told(asked(tmp_path, tiny_llama, "train")).problem.startswith("none of the 128 rows that were looked at")


def test_a_good_corpus_is_not_read_beyond_its_first_rows(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 500, seed=1)
    assert looked_at(tmp_path, tiny_llama)["train"] == Sampled(64, 0, 0, "")


@pytest.mark.parametrize(("arch", "limit"), [("llama", 6), ("bert", 4), ("t5", 4)])
def test_rows_that_are_cut_are_counted(tmp_path: Path, arch: str, limit: int) -> None:
    """Of three rows one is cut and one has nothing to read; the tokens that are lost are counted."""
    model = tiny.save_model(tmp_path, arch)
    long, short = "w1 w2 w3 w4 w5 w6 w7 w8 w9", "w1"
    row: dict[str, Callable[[str | None], dict[str, Any]]] = {
        "llama": lambda text: {"prompt": "w1", "completion": text},
        "bert": lambda text: {"text": text, "label": 0},
        "t5": lambda text: {"prompt": "w1", "completion": text},
    }
    for name in ("train", "queries"):
        save(tmp_path / f"{name}.jsonl", [{"name": name, **row[arch](text)} for text in (short, long, None)])
    job = prepare(load_config(asked(tmp_path, model, "train", max_length=limit)))
    field = "text" if arch == "bert" else "completion"
    assert job.looked_at == {
        "train": Sampled(3, 1, 1, f"row 2: unreadable: {field} is null"),
        "queries": Sampled(3, 1, 0, f"row 2: unreadable: {field} is null"),
    }
    lost = {name: [example.tokens_cut for example in examples] for name, examples in job.examples.items()}
    whole = {name: [example.tokens for example in examples] for name, examples in job.examples.items()}
    assert lost["queries"] == [0, 0, 0]
    assert lost["train"] == [0, whole["queries"][1] - whole["train"][1], 0]


def test_the_command_says_it_in_one_line(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(asked(tmp_path, tiny_llama, "queries", max_length=2)))
    ended = subprocess.run([*COMMAND, "run", str(path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1] == (
        "error: queries.max_length: 2: none of its 4 rows can be used: row 0: no_target_tokens: "
        "all of them lie beyond max_length 2; use a larger one"
    )
    assert not (tmp_path / "run").exists()


def looked_at(folder: Path, model: dict[str, Any]) -> dict[str, Sampled]:
    job: Job = prepare(load_config(tiny.configuration(folder, model, folder / "run")))
    return job.looked_at
