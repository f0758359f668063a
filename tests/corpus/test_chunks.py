from __future__ import annotations

import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import QueriesConfig, RowsConfig
from datainf_ray.corpus.chunks import Chunk, Segment, plan_corpus
from tests import tiny

CAUSAL = tiny.task("causal-lm")


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {i}"} for i in range(count)]


def plan(path, **options):
    return plan_corpus(RowsConfig(path=path, **options), CAUSAL, "train")


def test_chunks_are_fixed_ranges_that_span_files(write, tmp_path):
    for name, count in (("a", 3), ("b", 4), ("c", 1), ("d", 12)):
        write(f"{name}.jsonl", rows(count))
    write("bb.csv", "text\n")  # no rows
    corpus = plan(str(tmp_path))
    chunks = corpus.chunks(5)
    assert corpus.rows == 20
    assert [(c.number, c.first, c.rows) for c in chunks] == [(0, 0, 5), (1, 5, 5), (2, 10, 5), (3, 15, 5)]
    assert chunks[0].segments == (Segment(0, 0, 3), Segment(1, 0, 2))
    assert chunks[1].segments == (Segment(1, 2, 4), Segment(3, 0, 1), Segment(4, 0, 2))
    assert [c.rows for c in corpus.chunks(7)] == [7, 7, 6]
    assert [c.rows for c in corpus.chunks(100)] == [20]


def test_a_moved_corpus_is_the_same_and_a_changed_one_is_not(write, tmp_path):
    write("one/a.jsonl", rows(3))
    write("one/b.csv", rows(3))
    before = plan(f"{tmp_path}/one/*").fingerprint()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert plan(f"{tmp_path}/two/*").fingerprint() == before
    write("two/b.csv", [{"text": f"wor {i}"} for i in range(3)])
    assert plan(f"{tmp_path}/two/*").fingerprint() != before
    (tmp_path / "one/b.csv").rename(tmp_path / "one/c.csv")
    assert plan(f"{tmp_path}/one/*").fingerprint() != before


def test_what_the_columns_mean_is_part_of_the_fingerprint(write):
    path = write("a.jsonl", [{"text": "a", "other": "b"}])
    prints = {
        plan(path, **options).fingerprint()
        for options in ({}, {"columns": {"text": "other"}}, {"id": "other"}, {"max_length": 5})
    }
    assert len(prints) == 3  # max_length is the encoder's


def test_a_plan_stays_small_whatever_the_number_of_rows(write):
    path = write("a.jsonl", b'{"text": ""}\n' * 300_000)
    corpus = plan(path)
    assert corpus.rows == 300_000
    assert len(corpus.files[0].offsets) == -(-300_000 // corpus.files[0].stride)
    assert len(pickle.dumps(corpus)) < 20_000


def test_the_stride_doubles_when_there_are_too_many_offsets(write, monkeypatch):
    monkeypatch.setattr("datainf_ray.corpus.records._OFFSETS", 3)
    (file,) = plan(write("a.jsonl", b'{"text": "1234"}\n' * 5000)).files
    assert file.stride == 2048
    assert file.offsets == tuple(range(0, 5000 * 17, 2048 * 17))


def test_groups_are_known_by_their_first_rows(write):
    (parquet, arrow) = plan([write("a.parquet", rows(20)), write("a.arrow", rows(20))]).files
    assert parquet.groups == arrow.groups == (0, 7, 14)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b"\n \n"), ("a.csv", b"text\n\n"), ("a.csv", b"")])
def test_a_corpus_without_rows_is_refused(write, name, content):
    with pytest.raises(RequestError, match=r"train.path: .*no rows in 1 file"):
        plan(write(name, content))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"PAR1 and then not", "cannot be read as parquet"),
        ("a.arrow", b"ARROW1 and then not", "cannot be read as arrow"),
        ("a.feather", b"FEA1 and more of it", "cannot be read as arrow"),
        ("a.json", json.dumps([{"text": "a"}, {"text": "b"}], indent=1)[:-3].encode(), "array: the array is never clo"),
        ("a.json", b'["a", "b"]', "one object a line: .* not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "it is UTF-16; make it UTF-8, as by iconv -f UTF-16 -t UTF-8"),
        ("a.csv", b'text\n"a\nb\nc\n', "a quote that opens at byte 5 or later is never closed; where .* quoting: none"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(write, name, content, says):
    path = write(name, content)
    with pytest.raises(RequestError, match=says) as error:
        plan(path)
    assert str(error.value).startswith(f"train.path: {path}: cannot be read as ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "lz4"])
def test_a_truncated_file_is_refused(write, tmp_path, suffix):
    path = write(f"a.jsonl.{suffix}", [{"text": f"{i * 7919} row {i}"} for i in range(5000)])
    content = (tmp_path / f"a.jsonl.{suffix}").read_bytes()
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(RequestError, match="cannot be read as jsonl"):
        plan(path)


def test_id_and_group_columns_must_exist(write):
    path = write("a.jsonl", [{"text": "a", "name": "b", "topic": "c"}])
    with pytest.raises(RequestError, match=r"train.id: nam: no such column in .*did you mean 'name'"):
        plan(path, id="nam")
    with pytest.raises(RequestError, match=r"queries.group: tpoic: no such column in .*did you mean 'topic'"):
        plan_corpus(QueriesConfig(path=path, group="tpoic"), CAUSAL, "queries")
    assert plan_corpus(QueriesConfig(path=path, group="all"), CAUSAL, "queries").group_column is None
    assert plan_corpus(QueriesConfig(path=path, group="topic"), CAUSAL, "queries").group_column == "topic"


def test_a_thousand_files_are_planned_from_their_footers(tmp_path):
    table = pa.table({"text": ["a"] * 100})
    for i in range(1000):
        pq.write_table(table, tmp_path / f"part-{i:04d}.parquet", row_group_size=50)
    corpus = plan(f"{tmp_path}/*.parquet")
    assert (corpus.rows, len(corpus.files), len(corpus.chunks(1024))) == (100_000, 1000, 98)
    assert len(pickle.dumps(corpus)) < 400_000


@pytest.mark.parametrize("lengths", [[2], [1, 1], [5, 3, 1], [1, 7], [9, 1, 1, 2]])
def test_halves_have_all_rows_once(lengths: list[int]) -> None:
    chunk = Chunk(3, 100, tuple(Segment(k, 10, 10 + n) for k, n in enumerate(lengths)))

    def rows(part: Chunk) -> list[tuple[int, int]]:
        return [(s.file, row) for s in part.segments for row in range(s.start, s.stop)]

    left, right = chunk.halves()
    assert rows(left) + rows(right) == rows(chunk)
    assert abs(left.rows - right.rows) <= 1
    assert (left.number, left.first, right.first) == (3, 100, 100 + left.rows)
