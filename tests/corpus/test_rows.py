from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.storage import patience
from datainf_ray.config import RowsConfig
from datainf_ray.corpus import records, tables
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.rows import RowReader
from tests import tiny
from tests.corpus.reading import plan, read

FORMATS = ["a.parquet", "a.arrow", "a.ipc", "a.jsonl", "a.csv", "a.tsv"]
CODECS = ["", ".gz", ".bz2", ".xz", ".zst", ".lz4"]
TEXTS = [
    "plain",
    "two\nlines",
    'a "quoted", comma',
    "tab\there",
    " spaces ",
    "ünïcödé 漢字 🙂",
    "\r\n",
    "a\rb",
    "'",
    "",
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_compression_gives_the_rows_that_were_written(write, name, codec):
    wanted = [{"text": f"{i} {TEXTS[i % len(TEXTS)]}", "name": f"n{i}"} for i in range(50)]
    path = write(name + codec, wanted)
    rows = read(plan(path), chunk_rows=9)
    assert [row.fields for row in rows] == [{"text": row["text"]} for row in wanted]
    assert [row.row for row in rows] == list(range(50))
    assert [row.id for row in rows] == [f"{name}{codec}#{i}" for i in range(50)]
    assert all(row.problem is None and row.group is None for row in rows)
    named = read(plan(path, id="name", group="name"))
    assert [(row.id, row.group) for row in named] == [(f"n{i}", f"n{i}") for i in range(50)]


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FORMATS)
def test_chunks_in_any_order_give_what_a_whole_read_gives(write, monkeypatch, name, codec):
    monkeypatch.setattr(records, "_STRIDE", 4)  # so that reading on, skipping and seeking all happen
    monkeypatch.setattr(tables, "_BATCH_BYTES", 64)
    paths = [
        write(f"{k}{name}{codec}", [{"text": f"{k} {i}\n{TEXTS[i % 10]}"} for i in range(n)])
        for k, n in enumerate((40, 1, 27))
    ]
    corpus = plan(paths)
    whole = read(corpus)
    assert [row.fields["text"][:4].split() for row in whole[38:44]] == [
        [str(k), str(i)] for k, i in ((0, 38), (0, 39), (1, 0), (2, 0), (2, 1), (2, 2))
    ]
    reader, chunks = RowReader(corpus), corpus.chunks(5)
    order = [*range(0, len(chunks), 2), *reversed(range(len(chunks)))]
    random.Random(0).shuffle(order)
    for number in order:
        assert reader.read(chunks[number]) == whole[number * 5 : number * 5 + 5]


def test_concatenated_compressed_files_are_read_to_the_end(write, tmp_path):
    for suffix in ("gz", "bz2", "xz", "zst"):
        one = write(f"a.jsonl.{suffix}", [{"text": "first"}])
        (tmp_path / f"b.jsonl.{suffix}").write_bytes((tmp_path / f"a.jsonl.{suffix}").read_bytes() * 2)
        assert len(read(plan([one, f"{tmp_path}/b.jsonl.{suffix}"]))) == 3


def test_memory_files_are_read(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/corpus-rows/a.csv", b"text\nfirst\n")
    pq.write_table(pa.table({"text": ["second"]}), "corpus-rows/b.parquet", filesystem=fs)
    with fs.open("/corpus-rows/c.arrow", "wb") as file, pa.ipc.new_file(file, pa.schema({"text": pa.string()})) as sink:
        sink.write_table(pa.table({"text": ["third"]}))
    rows = read(plan("memory://corpus-rows/*"))
    assert [(row.id, row.fields["text"]) for row in rows] == [
        ("a.csv#0", "first"),
        ("b.parquet#0", "second"),
        ("c.arrow#0", "third"),
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n\n  \n", "\r\n"])
def test_json_lines_have_blank_lines_and_a_byte_order_mark(write, end):
    content = b"\xef\xbb\xbf" + b'{"text": "a"}\n\n  \r\n{"text": "b"}\r\n{"text": "c"}' + end.encode()
    assert [row.fields["text"] for row in read(plan(write("a.jsonl", content)))] == ["a", "b", "c"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
def test_csv_follows_rfc_4180(write, end):
    content = (
        b'\xef\xbb\xbf"text",name\r\n'
        b'"a ""quoted"" word",1\r\n'
        b"\r\n"
        b'"over\r\n\r\nthree lines, with comma",2\r\n'
        b'5" pipe,3\r\n'
        b'"",4\r\n'
        b",5"
    )
    rows = read(plan(write("a.csv", content + end.encode()), id="name"))
    texts = ['a "quoted" word', "over\r\n\r\nthree lines, with comma", '5" pipe', "", ""]
    assert [(row.fields["text"], row.id) for row in rows] == list(zip(texts, "12345", strict=True))


def test_a_csv_field_may_be_longer_than_pythons_limit(write):
    (row,) = read(plan(write("a.csv", "text\n" + "x" * 200_000 + "\n")))
    assert len(row.fields["text"]) == 200_000


def test_bad_json_lines_keep_their_places_and_ids(write):
    lines = [
        (b'{"text": "fine", "name": "zero"}', None, "zero"),
        (b"{not json", "not JSON: ", "a.jsonl#1"),
        (b'["text"]', "not a JSON object", "a.jsonl#2"),
        (b'{"name": "three"}', "row has no column 'text'", "three"),
        (b'{"text": null, "name": "four"}', "text is null", "four"),
        (b'{"text": 5, "name": 5}', "text is a number, not text", "5"),
        (b'{"text": ["a"], "name": null}', "text is a list, not text", "a.jsonl#6"),
        (b'{"text": "caf\xe9", "name": "seven"}', "text is not UTF-8", "seven"),
        (b'{"text": "half \\ud83d", "name": "eight"}', "text is not UTF-8", "eight"),
        (b'{"text": "fine", "name": "caf\xe9"}', None, "a.jsonl#9"),
        (b"[" * 100_000, "not JSON: ", "a.jsonl#10"),
        (b'{"text": ""}', None, "a.jsonl#11"),
        (b'{"text": "fine", "name": "zero"}', None, "zero"),
    ]
    rows = read(plan(write("a.jsonl", b"\n".join(line for line, _, _ in lines)), id="name"), chunk_rows=4)
    assert [row.row for row in rows] == list(range(13))
    assert [row.id for row in rows] == [name for _, _, name in lines]
    for row, (_, problem, _) in zip(rows, lines, strict=True):
        assert row.problem == problem if problem in (None, "") else row.problem.startswith(problem)


def test_bad_csv_records_keep_their_places_and_ids(write):
    content = b'text,name\nfine,0\ntoo,many,1\nfew\ncaf\xe9,3\nnew\rline,4\nfine,caf\xe9\n"fine",6\n'
    rows = read(plan(write("a.csv", content), id="name"))
    assert [row.problem for row in rows[:4]] == [
        None,
        "3 fields where the header has 2",
        "1 field where the header has 2",
        "text is not UTF-8",
    ]
    assert rows[4].problem is not None
    assert rows[4].problem.startswith("not CSV: new-line character")
    assert [row.problem for row in rows[5:]] == [None, None]
    assert [row.id for row in rows] == ["0", "a.csv#1", "a.csv#2", "3", "a.csv#4", "a.csv#5", "6"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_text_that_is_not_utf8_spoils_its_own_row_only(tmp_path, name, kind):
    values = pa.array([b"a", b"caf\xe9", None, "漢".encode()], pa.binary()).cast(pa.large_binary())
    column = values.view(kind) if kind != pa.binary() and kind != pa.string() else values.cast(pa.binary()).view(kind)
    table = pa.table({"text": column})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_file(tmp_path / name, table.schema) as sink:
            sink.write_table(table)
    rows = read(plan(str(tmp_path / name)))
    assert [row.problem for row in rows] == [None, "text is not UTF-8", "text is null", None]
    assert [row.fields["text"] for row in (rows[0], rows[3])] == ["a", "漢"]


def test_nested_text_that_is_not_utf8_spoils_its_own_row_only(tmp_path):
    bad = pa.array([b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    messages = pa.StructArray.from_arrays([pa.array(["user", "user"]), bad], ["role", "content"])
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 1, 2], messages)}), tmp_path / "a.parquet")
    rows = read(plan(str(tmp_path / "a.parquet")))
    assert [row.problem for row in rows] == ["messages is not UTF-8", None]
    assert rows[1].fields == {"messages": [{"role": "user", "content": "fine"}]}


def test_lists_may_be_written_as_json_where_the_format_has_none(write):
    messages = [{"role": "user", "content": "hi"}]
    wanted = [{"messages": json.dumps(messages)}, {"messages": "hi"}, {"messages": "5"}]
    rows = read(plan(write("a.csv", wanted)))
    assert rows[0].fields == {"messages": messages}
    assert rows[1].problem is not None
    assert rows[1].problem.startswith("messages is text that is not JSON")
    assert rows[2].problem == "messages is a number, not a list"


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_lists_and_numbers_come_as_python_objects(write, name):
    wanted = [{"input_ids": [i, i + 1], "label": i, "name": 10 * i} for i in range(20)]
    rows = read(plan(write(name, wanted), task="sequence-classification", id="name"))
    assert [row.fields for row in rows] == [{"input_ids": [i, i + 1], "label": i} for i in range(20)]
    assert [row.id for row in rows] == [str(10 * i) for i in range(20)]


def test_a_row_without_its_group_cannot_be_used(write):
    rows = read(plan(write("a.jsonl", [{"text": "a", "topic": 1}, {"text": "b", "topic": None}]), group="topic"))
    assert [(row.group, row.problem) for row in rows] == [("1", None), (None, "topic is null")]


def test_dictionary_columns_and_names_with_dots_are_read(tmp_path):
    table = pa.table({"a.text": pa.array(["x", "y", "x"]).dictionary_encode(), "a": [{"text": "no"}] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as sink:
        sink.write_table(table)
    rows = read(plan([f"{tmp_path}/a.parquet", f"{tmp_path}/b.arrow"], columns={"text": "a.text"}))
    assert [row.fields["text"] for row in rows] == ["x", "y", "x"] * 2


def test_a_damaged_row_group_spoils_its_own_rows_only(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i * 7919 % 1000} text {i}" for i in range(30)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, use_dictionary=False, compression="snappy")
    corpus = plan(str(path))
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    rows = read(corpus, chunk_rows=7)
    assert [row.row for row in rows] == list(range(30))
    assert [row.fields.get("text") for row in rows] == texts[:10] + [None] * 10 + texts[20:]
    assert all(row.problem.startswith("cannot be decoded: ") for row in rows[10:20])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.csv.gz", "a.parquet", "a.arrow", "a.ipc.zst"])
def test_a_file_that_has_become_shorter_is_an_error_not_a_row(write, name):
    path = write(name, [{"text": f"row {i}"} for i in range(10)])
    corpus = plan(path)
    content = Path(path).read_bytes()
    write(name, [{"text": f"row {i}"} for i in range(8)])
    reader = RowReader(corpus)
    for _ in range(2):  # and it stays one
        with pytest.raises(OSError, match=r"bytes instead of .*: it has changed since it was planned"):
            reader.read(corpus.chunks(5)[1])
    Path(path).write_bytes(content)
    assert [row.fields["text"] for row in reader.read(corpus.chunks(5)[1])] == [f"row {i}" for i in range(5, 10)]


def test_a_read_that_failed_can_be_tried_again(write, monkeypatch):
    corpus = plan(write("a.jsonl", [{"text": f"row {i}"} for i in range(10)]))

    class Failing(io.BufferedReader):
        def __next__(self) -> bytes:
            raise TimeoutError("the store is slow")

    reader, chunks = RowReader(corpus), corpus.chunks(5)
    with monkeypatch.context() as broken:
        broken.setattr(records, "open_file", lambda file: Failing(io.FileIO(file.path)))
        with patience(0.1), pytest.raises(TimeoutError):
            reader.read(chunks[0])
    assert [row.fields["text"] for chunk in chunks for row in reader.read(chunk)] == [f"row {i}" for i in range(10)]


def test_a_file_of_the_same_size_with_fewer_rows_is_an_error(write):
    path = write("a.jsonl", [{"text": f"row {i}"} for i in range(10)])
    corpus = plan(path)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-18] + b" " * 17 + b"\n")
    with pytest.raises(OSError, match="ends at row 9: it has changed since it was planned"):
        RowReader(corpus).read(corpus.chunks(10)[0])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_times_are_names_whatever_their_resolution(tmp_path, name):
    times = pa.array([1_700_000_000_000_000_001, None], pa.timestamp("ns"))
    table = pa.table({"text": ["a", "b"], "when": times})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_stream(tmp_path / name, table.schema) as sink:
            sink.write_table(table)
    rows = read(plan(str(tmp_path / name), id="when"))
    assert [row.id for row in rows] == ["2023-11-14 22:13:20.000000001", f"{name}#1"]


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "huge": ["b"]}), path, use_dictionary=False, compression="none")
    corpus = plan_corpus(RowsConfig(path=str(path)), tiny.task("causal-lm"), "train")
    column = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    path.write_bytes(content)
    assert [row.fields["text"] for row in read(corpus)] == ["a"]


@pytest.mark.parametrize("name", ["a.arrow", "a.ipc"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_arrow_batch_that_points_outside_its_memory(tmp_path: Path, name: str, nested: bool) -> None:
    """One flipped bit in an offset would end the process, or give another row's text."""
    batches, old, new = [], [], []
    for size, spoilt in ((11, None), (12, 99), (13, 1 << 30)):
        texts = ["a" * size, "ünï".encode("latin-1"), "c" * size]
        text = pa.array(texts, pa.binary()).cast(pa.string(), safe=False)
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), text) if nested else text
        batches.append(pa.record_batch([column], names=["messages" if nested else "text"]))
        old.append(struct.pack("<4i", 0, size, size + 3, 2 * size + 3))
        new.append(struct.pack("<4i", 0, spoilt or size, size + 3, 2 * size + 3))
    make = pa.ipc.new_file if name == "a.arrow" else pa.ipc.new_stream
    with make(str(tmp_path / name), batches[0].schema) as sink:
        for batch in batches:
            sink.write_batch(batch)
    content = (tmp_path / name).read_bytes()
    for before, after in zip(old, new, strict=True):
        assert content.count(before) == 1
        content = content.replace(before, after)
    (tmp_path / name).write_bytes(content)
    problems = [row.problem or "" for row in read(plan(str(tmp_path / name)))]
    assert problems[:3] == ["", f"{'messages' if nested else 'text'} is not UTF-8", ""]
    assert len(problems) == 9
    assert all(problem.startswith("cannot be decoded: ") for problem in problems[3:])


def test_a_missing_text_pair_is_an_empty_one(write):
    rows = [{"text": "a", "text_pair": "b", "label": 0}, {"text": "a", "text_pair": None, "label": 0}]
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        corpus = plan_corpus(RowsConfig(path=write(name, rows)), tiny.task("sequence-classification"), "train")
        read = RowReader(corpus).read(corpus.chunks(2)[0])
        assert [(row.fields["text_pair"], row.problem) for row in read] == [("b", None), ("", None)]
    path = write("b.jsonl", '{"text": "a", "text_pair": "b", "label": 0}\n{"text": "a", "label": 0}\n')
    corpus = plan_corpus(RowsConfig(path=path), tiny.task("sequence-classification"), "train")
    read = RowReader(corpus).read(corpus.chunks(2)[0])
    assert [(row.fields["text_pair"], row.problem) for row in read] == [("b", None), ("", None)]
