"""Format by file: the rows, one by one, as `datasets.load_dataset` or pandas gives them for the same file."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.errors import RequestError
from tests.corpus.reading import plan, read

datasets.disable_progress_bars()


def loaded(path: str, kind: str, cache: Path, **options: Any) -> list[dict[str, Any]]:
    return list(datasets.load_dataset(kind, data_files=path, split="train", cache_dir=str(cache), **options))


TALKS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]} for i in range(20)
]
PARTS = [{"messages": [{"role": "user", "content": [{"type": "text", "text": f"{i}"}]}]} for i in range(20)]
PAIRS = [{"prompt": f'{i} "a", ü ', "completion": f"b\n{i}"} for i in range(20)]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *((name, PAIRS) for name in ("a.parquet", "a.arrow", "a.ipc", "a.jsonl", "a.json", "a.csv", "a.tsv")),
        *((name, PAIRS) for name in ("a.jsonl.gz", "a.json.gz", "a.json.xz", "a.csv.bz2", "a.tsv.xz")),
        *((name, TALKS) for name in ("a.parquet", "a.arrow", "a.jsonl", "a.json")),
        *((name, PARTS) for name in ("a.parquet", "a.jsonl", "a.json")),
    ],
)
def test_rows_are_those_of_load_dataset(
    write: Callable[..., str], tmp_path: Path, name: str, rows: list[dict[str, Any]]
) -> None:
    kinds = {"parquet": "parquet", "arrow": "arrow", "ipc": "arrow", "csv": "csv", "tsv": "csv"}
    kind = kinds.get(name.split(".")[1], "json")
    path = write(name, rows)
    made = read(plan(path), chunk_rows=7)
    wanted = loaded(path, kind, tmp_path / "cache", **({"sep": "\t"} if "tsv" in name else {}))
    assert [row.fields for row in made] == wanted == rows
    assert all(row.problem is None for row in made)


GLUE = """index\tsentence\tlabel
0\t"Great" film it said\t1
1\t"An opening quote only\t0
2\tplain\t1
3\tends "here\t0
4\tlast one" of them\t1
"""


@pytest.mark.parametrize("quoting", ["standard", "none"])
def test_glues_tsv_is_read_as_load_dataset_reads_it(write: Callable[..., str], tmp_path: Path, quoting: str) -> None:
    path = write("glue.tsv", GLUE)
    corpus = plan(path, columns={"text": "sentence"}, id="index", quoting=quoting)
    options = {"standard": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}
    wanted = loaded(path, "csv", tmp_path / "cache", sep="\t", quoting=options[quoting])
    rows = read(corpus)
    assert [(row.id, row.fields["text"]) for row in rows] == [(str(row["index"]), row["sentence"]) for row in wanted]
    assert len(rows) == {"standard": 3, "none": 5}[quoting]
    assert corpus.files[0].merged == {"standard": 1, "none": 0}[quoting]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_quotes_that_are_text(write: Callable[..., str], name: str) -> None:
    sign = "\t" if "tsv" in name else ","
    content = "\n".join(sign.join(row) for row in (("text", "id"), ('"a" b', "0"), ('a "b" c', "1"), ('"open', "2")))
    path = write(name, content)
    with pytest.raises(RequestError, match="is never closed; where quotes are part of the text, set quoting: none"):
        plan(path)
    wanted = pd.read_csv(path, sep=sign, quoting=csv.QUOTE_NONE, dtype=str)
    rows = read(plan(path, quoting="none", id="id"), chunk_rows=2)
    assert [row.fields["text"] for row in rows] == list(wanted["text"])
    assert [row.id for row in rows] == list(wanted["id"])


def test_quoting_of_no_csv_file_is_a_mistake(write: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match=r"queries.quoting: none: there is no CSV or TSV file"):
        plan(write("a.jsonl", [{"text": "a"}]), quoting="none")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz"])
def test_wide_encodings_are_told(write: Callable[..., str], name: str, encoding: str) -> None:
    path = write(name, (b'{"text": "a"}\n' if "json" in name else b"text\na\n").decode().encode(encoding))
    with pytest.raises(RequestError) as caught:
        plan(path)
    wide = "UTF-32" if encoding == "utf-32" else "UTF-16"
    kind = "jsonl" if "json" in name else "csv"
    assert str(caught.value) == (
        f"queries.path: {path}: cannot be read as {kind}: it is {wide}; make it UTF-8, as by iconv -f {wide} -t UTF-8 "
        "FILE > NEW"
    )


@pytest.mark.parametrize(("sign", "said"), [(";", "divided by ';'"), ("|", "divided by '|'"), ("\t", "by tabs; call")])
@pytest.mark.parametrize("asked", [{}, {"columns": {"prompt": "prompt"}}, {"id": "prompt"}])
def test_another_delimiter_is_told(write: Callable[..., str], sign: str, said: str, asked: dict[str, Any]) -> None:
    path = write("a.csv", f"prompt{sign}completion\nWho, me?{sign}You.\n")
    with pytest.raises(RequestError) as caught:
        plan(path, **asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    if sign != "\t":  # and the remedy is one
        code = str(caught.value).partition("convert it: ")[2].replace("rows.jsonl", f"{path}.jsonl")
        exec(code, {"pandas": pd})
        assert read(plan(f"{path}.jsonl"))[0].fields == {"prompt": "Who, me?", "completion": "You."}


def test_a_spreadsheets_columns_without_a_name(write: Callable[..., str]) -> None:
    path = write("a.csv", "\ufeffprompt,completion,,\r\nHi, yo,,\r\n")
    assert [row.fields for row in read(plan(path))] == [{"prompt": "Hi", "completion": " yo"}]
    with pytest.raises(RequestError, match=r"cannot be read as csv: two of its columns are called 'prompt'$"):
        plan(write("b.csv", "prompt,prompt,completion\na,b,c\n"))


def test_a_column_may_have_a_semicolon_in_its_name(write: Callable[..., str]) -> None:
    assert read(plan(write("a.csv", "a;b\ntext\n"), columns={"text": "a;b"}))[0].fields == {"text": "text"}


def test_the_json_type_of_datasets(tmp_path: Path) -> None:
    """Arguments of different tools, which a struct could only have all together."""
    calls = [{"city": "Paris"}, {"ticker": 3}]
    talks = [[{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}] for call in calls]
    features = datasets.Features({"messages": datasets.List(datasets.Json())})
    made = datasets.Dataset.from_dict({"messages": talks}, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(str(tmp_path / "saved"))
    assert [row["messages"] for row in loaded(str(tmp_path / "a.parquet"), "parquet", tmp_path / "cache")] == talks
    for path in ("a.parquet", "saved"):
        assert [row.fields["messages"] for row in read(plan(str(tmp_path / path)))] == talks


UUIDS = [uuid.UUID(int=i) for i in (1, 2)]


def extension(kind: Any, values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


#: Columns of Arrow's rarer types, and the ids that they give.
NAMES: dict[str, tuple[pa.Array, list[str]]] = {
    "binary": (pa.array([b"a", "ü".encode()]), ["a", "ü"]),
    "large_binary": (pa.array([b"a", "ü".encode()], pa.large_binary()), ["a", "ü"]),
    "binary_view": (pa.array([b"a", "ü".encode()], pa.binary_view()), ["a", "ü"]),
    "string_view": (pa.array(["a", "ü"], pa.string_view()), ["a", "ü"]),
    "fixed_size_binary": (pa.array([b"id-0", b"id-1"], pa.binary(4)), ["id-0", "id-1"]),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "dictionary of bytes": (pa.array([b"a", b"b"]).dictionary_encode(), ["a", "b"]),
    "decimal": (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), ["1.50", "2.00"]),
    "uuid": (extension(pa.uuid(), [one.bytes for one in UUIDS]), [str(one) for one in UUIDS]),
    "json": (extension(pa.json_(), ['"a"', "5"]), ["a", "5"]),
    "bool8": (extension(pa.bool8(), [1, 0]), ["True", "False"]),
    "opaque": (extension(pa.opaque(pa.string(), "t", "v"), ["a", "b"]), ["a", "b"]),
    "time": (pa.array([1, 2], pa.timestamp("ms")), ["1970-01-01 00:00:00.001", "1970-01-01 00:00:00.002"]),
    "date": (pa.array([datetime.date(2026, 1, 1)] * 2), ["2026-01-01"] * 2),
    "uint64": (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
    "half": (pa.array([1.5, 2], pa.float16()), ["1.5", "2.0"]),
}


def written(path: Path, table: pa.Table) -> str:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        make = pa.ipc.new_stream if path.suffix == ".ipc" else pa.ipc.new_file
        with make(str(path), table.schema) as sink:
            sink.write_table(table)
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "ipc"])
@pytest.mark.parametrize("kind", NAMES)
def test_names_of_every_type(tmp_path: Path, kind: str, suffix: str) -> None:
    column, wanted = NAMES[kind]
    column = pa.concat_arrays([column, pa.nulls(1, column.type)])
    path = written(tmp_path / f"a.{suffix}", pa.table({"text": ["x", "y", "z"], "name": column}))
    rows = read(plan(path, id="name", group="name"))
    assert [row.id for row in rows] == [*wanted, f"a.{suffix}#2"]
    assert [row.group for row in rows] == [*wanted, None]


TEXT = ["binary", "large_binary", "binary_view", "string_view", "fixed_size_binary", "dictionary", "uuid", "opaque"]


@pytest.mark.parametrize("kind", TEXT)
def test_text_of_every_type(tmp_path: Path, kind: str) -> None:
    column, wanted = NAMES[kind]
    for suffix in ("parquet", "arrow"):
        rows = read(plan(written(tmp_path / f"a.{suffix}", pa.table({"text": column}))))
        assert [(row.fields["text"], row.problem) for row in rows] == [(text, None) for text in wanted]


#: Lists of token ids of every type that has any.
LISTS = {
    "list": pa.list_(pa.int32()), "large_list": pa.large_list(pa.int64()), "list_view": pa.list_view(pa.int64()),
    "large_list_view": pa.large_list_view(pa.uint16()), "fixed_size_list": pa.list_(pa.int64(), 2),
    "json": pa.json_(), "list of json": pa.list_(pa.json_()),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "ipc"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_type(tmp_path: Path, kind: str, suffix: str) -> None:
    values: Any = [[5, 6], [7, 8]]
    if kind == "list of json":
        flat = extension(pa.json_(), ["5", "6", "7", "8"])
        column = pa.ListArray.from_arrays([0, 2, 4], flat)
    elif kind == "json":
        column = extension(pa.json_(), [json.dumps(value) for value in values])
    else:
        column = pa.array(values, LISTS[kind])
    rows = read(plan(written(tmp_path / f"a.{suffix}", pa.table({"input_ids": column}))))
    assert [(row.fields["input_ids"], row.problem) for row in rows] == [(value, None) for value in values]


def test_a_struct_with_json_in_it(tmp_path: Path) -> None:
    inner = extension(pa.json_(), ['{"k": [1]}', None, "no json"])
    column = pa.StructArray.from_arrays([inner, pa.array(["a", "b", "c"])], ["args", "text"])
    path = written(tmp_path / "a.arrow", pa.table({"messages": pa.ListArray.from_arrays([0, 2, 3], column)}))
    rows = read(plan(path))
    assert rows[0].fields["messages"] == [{"args": {"k": [1]}, "text": "a"}, {"text": "b"}]  # no null
    assert rows[1].fields["messages"] == [{"args": "no json", "text": "c"}]


BAD = pa.array([b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
NOT_UTF8 = {
    "text": (BAD, "text"),
    "view": (pa.array([b"caf\xe9", b"ok"], pa.binary_view()).view(pa.string_view()), "text"),
    "fixed": (pa.array([b"\xe9", b"o"], pa.binary(1)), "text"),
    "dictionary": (pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), BAD), "text"),
    "list": (pa.ListArray.from_arrays([0, 1, 2], BAD), "messages"),
    "list_view": (pa.ListViewArray.from_arrays([0, 1], [1, 1], BAD), "messages"),
    "large_list_view": (pa.LargeListViewArray.from_arrays([0, 1], [1, 1], BAD), "messages"),
    "fixed_size_list": (pa.FixedSizeListArray.from_arrays(BAD, 1), "messages"),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), BAD), "text"),
    "list of dictionary": (
        pa.ListArray.from_arrays([0, 1, 2], pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), BAD)),
        "messages",
    ),
}


@pytest.mark.parametrize("kind", NOT_UTF8)
def test_what_is_not_utf8_costs_its_row_in_every_type(tmp_path: Path, kind: str) -> None:
    column, role = NOT_UTF8[kind]
    rows = read(plan(written(tmp_path / "a.arrow", pa.table({role: column}))))
    assert [row.problem for row in rows] == [f"{role} is not UTF-8", None]


@pytest.mark.parametrize("values", [["1", "0"], ["1.00", "0.00"]])
def test_decimals_are_labels(tmp_path: Path, values: list[str]) -> None:
    table = pa.table({"text": ["a", "b"], "label": pa.array([decimal.Decimal(value) for value in values])})
    rows = read(plan(written(tmp_path / "a.parquet", table), task="sequence-classification"))
    assert [row.fields["label"] for row in rows] == [1, 0]
    assert all(type(row.fields["label"]) is int for row in rows)
