"""Columns that are asked for by other than their own names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.folders import partition_of
from datainf_ray.corpus.rows import RowReader
from tests.corpus.reading import plan, read
from tests.corpus.test_templates import ALPACA

NESTED = [
    {"data": {"prompt": f"p{i}", "completion": f"c{i}", "meta": {"id": f"id-{i}", "topic": f"t{i % 2}"}}, "n": i}
    for i in range(20)
]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.ipc", "a.jsonl", "a.jsonl.gz"])
def test_values_within_columns_are_columns(write: Callable[..., str], name: str) -> None:
    columns = {"prompt": "data.prompt", "completion": "data.completion"}
    corpus = plan(write(name, NESTED), columns=columns, id="data.meta.id", group="data.meta.topic")
    rows = read(corpus, chunk_rows=7)
    wanted = [row["data"] for row in NESTED]
    assert [row.fields for row in rows] == [{k: data[k] for k in ("prompt", "completion")} for data in wanted]
    assert [(row.id, row.group) for row in rows] == [(data["meta"]["id"], data["meta"]["topic"]) for data in wanted]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_a_column_with_a_dot_in_its_own_name_wins(write: Callable[..., str], name: str) -> None:
    path = write(name, [{"a.text": "own", "a": {"text": "within", "b.c": "dotted"}}])
    assert read(plan(path, columns={"text": "a.text"}))[0].fields == {"text": "own"}
    assert read(plan(path, columns={"text": "a.b.c"}))[0].fields == {"text": "dotted"}


def test_what_is_not_within_a_row_costs_that_row(write: Callable[..., str]) -> None:
    lines = [{"d": {"t": "fine"}}, {"d": None}, {"d": {}}, {"d": "text"}, {}, {"d": {"t": None}}, {"d": {"t": 5}}]
    rows = read(plan(write("a.jsonl", lines), columns={"text": "d.t"}))
    lacks = "row has no column 'd.t'"
    assert [row.problem for row in rows] == [
        None, "text is null", lacks, lacks, lacks, "text is null", "text is a number, not text",
    ]  # fmt: skip


def test_a_struct_that_is_null_has_nulls_within(tmp_path: Path) -> None:
    pq.write_table(pa.table({"d": pa.array([{"t": "a"}, None])}), tmp_path / "a.parquet")
    rows = read(plan(str(tmp_path / "a.parquet"), columns={"text": "d.t"}))
    assert [row.problem for row in rows] == [None, "text is null"]


def test_what_is_nowhere_within_is_told(write: Callable[..., str]) -> None:
    path = write("a.jsonl", NESTED)
    with pytest.raises(RequestError, match=r"columns.text: data.promt: no such .*; did you mean 'data.prompt'\?"):
        plan(path, columns={"text": "data.promt"})
    with pytest.raises(RequestError, match=r"queries.id: data.meta.idd: no such column .*'data.meta.id'"):
        plan(path, columns={"text": "data.prompt"}, id="data.meta.idd")


def damaged(path: Path, column: str) -> None:
    """Make a column of a Parquet file undecodable."""
    meta = pq.read_metadata(path).row_group(0)
    chunk = next(meta.column(i) for i in range(meta.num_columns) if meta.column(i).path_in_schema == column)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    row = {"instruction": "a", "input": "b", "output": "c", "huge": "d", "data": {"small": "e", "huge": "f"}}
    pq.write_table(pa.Table.from_pylist([row]), path, use_dictionary=False, compression="none")
    damaged(path, "huge")
    damaged(path, "data.huge")
    columns = {"prompt": ALPACA, "completion": "data.small"}
    (made,) = read(plan(str(path), columns=columns))
    assert (made.problem, made.fields) == (None, {"prompt": "a\n\nb", "completion": "e"})
    damaged(path, "input")  # so that what this test sees is there to be seen
    assert read(plan(str(path), columns=columns))[0].problem is not None


VALUES: list[tuple[str | None, int]] = [("en", 3), ("a/b c=ü", 2), (None, 4)]


@pytest.mark.parametrize("name", ["part-0.parquet", "part-0.arrow", "part-0.jsonl", "part-0.csv.gz"])
def test_hives_folders_are_columns(write: Callable[..., str], tmp_path: Path, name: str) -> None:
    schema = pa.schema([("lang", pa.string())])
    table = pa.table({
        "text": [f"{lang} {i}" for lang, count in VALUES for i in range(count)],
        "lang": pa.array([lang for lang, count in VALUES for _ in range(count)], pa.string()),
    })  # fmt: skip
    hive = ds.partitioning(schema, flavor="hive")
    ds.write_dataset(table, tmp_path / "d", format="parquet", partitioning=hive, basename_template="part-{i}.parquet")
    wanted = {row["text"]: row["lang"] for row in ds.dataset(tmp_path / "d", partitioning=hive).to_table().to_pylist()}
    assert len(set(wanted.values())) == 3
    for made in list((tmp_path / "d").rglob("*.parquet")):
        write(str(made.parent.relative_to(tmp_path) / name), pq.read_table(made, partitioning=None).to_pylist())
        if not name.endswith(".parquet"):
            made.unlink()
    for path in (f"{tmp_path}/d", f"{tmp_path}/d/*/*", f"{tmp_path}/d/lang=*/*"):
        rows = read(plan(path, columns={"text": "text"}, group="lang"), chunk_rows=2)
        assert {row.fields["text"]: row.group for row in rows} == wanted
        assert {row.problem for row in rows if row.group is None} == {"lang is null"}
    texts = read(plan(f"{tmp_path}/d", columns={"prompt": "lang", "completion": "{{ lang }}: {{ text }}"}))
    good = [row.fields for row in texts if row.problem is None]
    assert sorted(row["completion"] for row in good) == sorted(f"{v}: {k}" for k, v in wanted.items() if v)


def test_folders_say_no_more_than_they_are_asked(write: Callable[..., str], tmp_path: Path) -> None:
    """So a corpus is what it was: a folder's word is no role of itself, and a file's own column counts more."""
    write("label=1/prompt=x/a.jsonl", [{"text": "a", "id": "own"}])
    write("id=other/a.jsonl", [{"text": "a", "id": "own"}])
    assert plan(f"{tmp_path}/label=1").columns == {"text": "text"}
    assert read(plan(f"{tmp_path}/id=other", id="id"))[0].id == "own"
    with pytest.raises(RequestError, match=r"no such column in .*, which has text, id, label, prompt"):
        plan(f"{tmp_path}/label=1", id="nothing")
    with pytest.raises(RequestError, match=r"no such column in .*/id=other/a.jsonl"):
        plan(str(tmp_path), id="label")


def test_a_signature_is_no_folder() -> None:
    fs = fsspec.filesystem("memory")
    assert partition_of(fs, "/lang=en/a.jsonl?sig=a/b=c/d") == (("lang", "en"),)
    assert partition_of(fsspec.filesystem("file"), "/lang=en/a?b=c/d.jsonl") == (("lang", "en"), ("a?b", "c"))


def test_bytes_in_a_folders_name_that_are_not_utf8_cost_their_rows(write: Callable[..., str], tmp_path: Path) -> None:
    write("lang=%E9/a.jsonl", [{"text": "a"}])
    (row,) = read(plan(f"{tmp_path}/lang=%E9", group="lang"))
    assert row.problem == "lang is null"


def test_another_word_of_a_folder_is_another_corpus_if_it_is_read(write: Callable[..., str], tmp_path: Path) -> None:
    write("lang=en/a.jsonl", [{"text": "a"}])
    shutil.copytree(tmp_path / "lang=en", tmp_path / "lang=de")

    def prints(**options: Any) -> set[str]:
        return {plan(f"{tmp_path}/lang={lang}", **options).fingerprint() for lang in ("en", "de")}

    assert len(prints()) == 1
    assert len(prints(id="lang")) == len(prints(columns={"text": "{{ lang }}{{ text }}"})) == 2


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.ipc.zst", "a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_alpaca_in_every_format(write: Callable[..., str], name: str) -> None:
    alpaca = [{"instruction": "Add.", "input": f"{i} and 2" if i % 3 else "", "output": f"{i + 2}"} for i in range(12)]
    corpus = plan(write(name, alpaca), columns={"prompt": ALPACA, "completion": "output"})
    assert corpus.columns == {"prompt": ALPACA, "completion": "output"}
    rows = read(corpus, chunk_rows=5)
    assert [row.fields for row in rows] == [
        {
            "prompt": row["instruction"] + (f"\n\n{row['input']}" if row["input"] else ""),
            "completion": row["output"],
        }
        for row in alpaca
    ]


def test_a_hostile_row_costs_no_other(write: Callable[..., str]) -> None:
    text = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ a }}{{ a.b }}"
    rows = [{"n": 3, "a": {"b": "fine"}}, {"n": 90_000, "a": {"b": ""}}, {"n": 3, "a": 5}, {"n": "x", "a": {"b": ""}},
            {"n": 3, "a": {"b": "half \ud83d"}}, {"n": None, "a": None}, {"n": 2, "a": {"b": "{{ n }}"}}]  # fmt: skip
    path = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    made = read(plan(path, columns={"text": text}))
    said = [row.problem or "" for row in made]
    for problem, start in zip(said, ("", "text: loops more than", "text: 'int object' has no attribute 'b'", "text: ",
                                     "text is not UTF-8", "text is null", ""), strict=True):  # fmt: skip
        assert problem.startswith(start), problem
        assert bool(problem) == bool(start)
    assert made[6].fields == {"text": "{'b': '{{ n }}'}{{ n }}"}  # a row's text is no template


def test_columns_that_a_line_leaves_out_are_null_in_a_text(write: Callable[..., str]) -> None:
    path = write("a.jsonl", '{"a": "x", "b": "y"}\n{"a": "x"}\n{"b": null}\n{"c": 1}\nnothing\n')
    rows = read(plan(path, columns={"text": "{{ a }}{% if b %}-{{ b }}{% endif %}"}))
    assert [row.fields.get("text") for row in rows[:2]] == ["x-y", "x"]
    assert [row.problem for row in rows[2:4]] == ["text is null", "row has no column 'a, b'"]
    assert (rows[4].problem or "").startswith("not JSON")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": "{{ a"}, r"queries.columns.text: {{ a: is no Jinja text: unexpected end of template, .* in line 1"),
        ({"text": "{{ c }}"}, r"queries.columns.text: c: no such column in .*a.jsonl, which has a, b"),
        ({"text": "{{ bb }}"}, r"queries.columns.text: bb: no such column in .*; did you mean 'b'\?"),
        (
            {"messages": "{{ a }}"},
            r"messages: {{ a }}: messages takes no Jinja text; those that do are text, pr",
        ),
        ({"text": "{% macro f() %}{% endmacro %}"}, "text: .*: is no Jinja text: macro is not available in columns"),
    ],
)
def test_a_text_that_cannot_be_is_one_line(write: Callable[..., str], columns: dict[str, str], says: str) -> None:
    path = write("a.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(RequestError, match=says) as caught:
        plan(path, columns=columns)
    assert "\n" not in str(caught.value)


def test_every_file_must_have_what_a_text_uses(write: Callable[..., str]) -> None:
    paths = [write("a.jsonl", [{"a": "x", "b": "y"}]), write("b.jsonl", [{"a": "x"}])]
    with pytest.raises(RequestError, match=r"columns.text: b: no such column in .*b.jsonl, which has a"):
        plan(paths, columns={"text": "{{ a }}{{ b }}"})


def test_readers_on_other_machines_get_the_text_as_it_stands(write: Callable[..., str]) -> None:
    import pickle

    corpus = plan(write("a.jsonl", [{"a": "x"}]), columns={"text": "<{{ a }}>"})
    other = pickle.loads(pickle.dumps(corpus))
    (row,) = RowReader(other).read(other.chunks(1)[0])
    assert row.fields == {"text": "<x>"}
    assert plan(corpus.files[0].path, columns={"text": "<{{ a }}> "}).fingerprint() != corpus.fingerprint()
