"""Rows that are looked at before anything starts: a corpus of which none can be used is a wrong request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from datainf_ray import cli
from datainf_ray.cluster.ahead import Ahead
from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request import sampled
from datainf_ray.request.job import Job, prepare
from datainf_ray.request.sampled import describe
from tests import tiny

Spoil = Callable[[Path, str], dict[str, Any]]


def too_short(folder: Path, name: str) -> dict[str, Any]:
    return {f"{name}.max_length": 2}


def rows(*values: Any, suffix: str = "jsonl", **more: Any) -> Spoil:
    def spoil(folder: Path, name: str) -> dict[str, Any]:
        path = folder / f"bad.{suffix}"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return {f"{name}.path": str(path), f"{name}.id": None}

    return spoil


def flipped(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "bad.parquet"
    pq.write_table(pa.table({"text": [f"w{k} w2 w3" for k in range(100)]}), path, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    first = column.dictionary_page_offset + 40  # behind the page's header
    content = bytearray(path.read_bytes())
    content[first : first + 60] = bytes(byte ^ 0xFF for byte in content[first : first + 60])
    path.write_bytes(content)
    return {f"{name}.path": str(path), f"{name}.id": None}


CAUSAL: dict[str, tuple[Spoil, str, str]] = {
    "max_length": (
        too_short,
        "max_length: 2: none of ",
        "no_target_tokens: all of them lie beyond max_length 2; these",
    ),
    "null completions": (
        rows(*[{"prompt": "w1", "completion": None}] * 3),
        "none of its 3 rows can be used",
        "bad.jsonl#0: unreadable: completion is null",
    ),
    "ids out of range": (
        rows(*[{"input_ids": [1, 999, 2]}] * 70),
        "none of its 70 rows can be used",
        "bad.jsonl#0: unreadable: input_ids holds 999, which is no token id in 0..63",
    ),
    "flipped Parquet": (flipped, "none of its 100 rows can be used", "bad.parquet#0: unreadable: "),
    "empty texts": (
        rows({"text": ""}, {"text": ""}),
        "none of its 2 rows can be used",
        "bad.jsonl#0: no_target_tokens: nothing to predict",
    ),
    "labels of -100": (
        rows(*[{"input_ids": [1, 2], "labels": [-100, -100]}] * 2000),
        "none of 1,088 rows looked at can be used",
        "bad.jsonl#0: no_target_tokens: nothing to predict",
    ),
}


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ahead, "begin", lambda self: None)
    monkeypatch.setattr("datainf_ray.session.execute.connected", lambda *a: pytest.fail("the cluster was asked for"))


def refused(
    config: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str = "run"
) -> str:
    """The one line of a command that refuses a configuration."""
    path = Path(config["output"]).parent / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(
        "sys.argv", ["datainf", command, str(path), *(f"--set={k}={json.dumps(v)}" for k, v in settings.items())]
    )
    capsys.readouterr()  # the bars of models that were saved
    with pytest.raises(SystemExit) as left:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2, lines
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("name", ["train", "queries"])
@pytest.mark.parametrize("case", CAUSAL)
def test_rows_of_which_none_can_be_used_are_a_wrong_request(
    case: str, name: str, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    spoil, said, why = CAUSAL[case]
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    line = refused(config, spoil(tmp_path, name), monkeypatch, capsys)
    assert line.startswith(f"error: {name}.")
    assert said in line
    assert f"; the first is {'row-0: ' if case == 'max_length' else ''}{why}" in line


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("name", ["train", "queries"])
@pytest.mark.parametrize("arch", ["bert", "t5"])
def test_so_are_those_of_the_other_tasks(
    arch: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    labels = 3 if arch == "bert" else None
    for corpus in ("train", "queries"):
        tiny.write_rows(tmp_path / f"{corpus}.jsonl", 8, 1, labels=labels)
    config = tiny.configuration(tmp_path, tiny.save_model(tmp_path, arch), tmp_path / "run")
    bad = {"text": "w1", "label": None} if arch == "bert" else {"prompt": None, "completion": "w1"}
    line = refused(config, rows(bad, bad)(tmp_path, name), monkeypatch, capsys, "plan")
    where = f"error: {name}.path: {tmp_path / 'bad.jsonl'}: none of its 2 rows can be used; the first is bad.jsonl#0: "
    assert line == where + f"unreadable: {'label' if arch == 'bert' else 'prompt'} is null"


def of_texts(tmp_path: Path, model: dict[str, Any], texts: list[str], **settings: Any) -> Job:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = tiny.configuration(tmp_path, model, tmp_path / "run") | {"train": {"path": str(tmp_path / "texts.jsonl")}}
    return prepare(load_config(config, **settings), writable=False)


def test_usable_rows_behind_many_others_are_found(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    job = of_texts(tmp_path, tiny_llama, [""] * 900 + ["w1 w2"] * 100)
    usable = [example for example in job.examples["train"] if example.status == "ok"]
    assert usable
    assert {example.row for example in usable} <= set(range(900, 1000))
    with pytest.raises(RequestError, match=r"^train.path: .*texts.jsonl: none of its 1,000 rows can be used"):
        of_texts(tmp_path, tiny_llama, [""] * 1000)


def test_no_more_is_read_of_a_corpus_with_one_usable_row(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "spread_chunk", lambda *a: pytest.fail("more rows were read"))
    job = of_texts(tmp_path, tiny_llama, [""] * 63 + ["w1 w2"] * 937)
    assert [example.row for example in job.examples["train"]] == list(range(64))


def test_rows_that_cannot_be_used_or_are_cut_are_counted(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    job = of_texts(tmp_path, tiny_llama, ["w1 w2", "", "w1 w2 w3 w4"] * 3, **{"train.max_length": 4})
    assert describe(job.looked["train"], "train") == (
        "of the 9 training rows that were looked at 3 cannot be used (the first is texts.jsonl#1: no_target_tokens: "
        "nothing to predict), and 3 are longer than max_length, and cut"
    )
    assert describe(job.looked["queries"], "queries") is None


def test_rows_of_a_tsv_file_that_swallow_others_are_told(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    lines = ["text\tlabel", '"w1 w2\t0', "w3\t1", 'w4" w5\t0', "w6\t1", '"w7\nw8"\t1']
    (tmp_path / "glue.tsv").write_text("\n".join(lines) + "\n")
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    config["train"] = {"path": str(tmp_path / "glue.tsv"), "columns": {"text": "text"}}
    looked = prepare(load_config(config), writable=False).looked
    assert describe(looked["train"], "train") == (
        "1 training row of TSV files with tabs and line breaks in a field: where quotes are part of the text, set "
        "train.quoting: none"
    )
    assert describe(looked["queries"], "queries") is None
    lines = lines[:5]
    (tmp_path / "glue.tsv").write_text("\n".join(lines) + "\n")
    job = prepare(load_config(config, **{"train.quoting": "none"}), writable=False)
    assert (job.rows, describe(job.looked["train"], "train")) == (4, None)


#: What of a corpus' files or columns is refused, and what is said.
UNCLEAR: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "splits": ({"d/train.jsonl": "{}", "d/test.jsonl": "{}"}, {"path": "d"}, "several splits or configurations: t"),
    "UTF-16": ({"a.csv": "\x00t\x00e"}, {"path": "a.csv"}, "it is UTF-16"),
    "a wrong text": ({"a.jsonl": '{"a": 1}'}, {"path": "a.jsonl", "columns": {"text": "{{ a"}}, "is no Jinja text"),
    "a name": ({"a.jsonl": '{"a": 1}'}, {"path": "a.jsonl", "columns": {"text": "{{ b }}"}}, "b: no such column in"),
    "alpaca": ({"a.jsonl": '{"question": 1, "answer": 2}'}, {"path": "a.jsonl"}, "{prompt: question, completion: answ"),
    "wrapped": ({"a.json": '{"data": [{"a": 1}]}'}, {"path": "a.json"}, "make lines of them: jq -c '.data[]' a.json"),
    "a blown-up text": (
        {"a.jsonl": '{"a": 99999}'},
        {
            "path": "a.jsonl",
            "columns": {"text": "{% for i in range(a) %}" * 2 + "{% endfor %}" * 2},
        },
        "a.jsonl#0: unreadable: text: loops more than 1,000,000 times",
    ),
}


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("case", UNCLEAR)
def test_a_corpus_that_is_unclear_is_one_line(
    case: str, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    files, asked, says = UNCLEAR[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    config["train"] = asked | {"path": str(tmp_path / asked["path"])}
    line = refused(config, {}, monkeypatch, capsys)
    assert line.startswith("error: train.")
    assert says in line
