from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.find import find_files

ROWS = [{"text": "a"}]


def names(*entries: str) -> list[str]:
    return [file.name for file in find_files(entries, "train.path")]


def test_names_are_relative_to_what_stands_before_the_wildcard(write, tmp_path):
    for name in ("b/2.jsonl", "b/1.jsonl", "a/9.csv.gz"):
        write(name, ROWS)
    assert names(f"{tmp_path}/*/*") == ["a/9.csv.gz", "b/1.jsonl", "b/2.jsonl"]
    assert names(f"{tmp_path}/b/?.jsonl") == ["1.jsonl", "2.jsonl"]
    assert names(f"{tmp_path}/**/*.jsonl") == ["b/1.jsonl", "b/2.jsonl"]
    assert names(f"{tmp_path}/b/2.jsonl") == ["2.jsonl"]


def test_a_directory_means_the_data_files_below_it(write, tmp_path):
    for name in ("d/x/1.parquet", "d/0.jsonl", "d/_SUCCESS", "d/.hidden.csv", "d/_old/2.csv", "d/README.md"):
        write(name, b"x")
    assert names(f"{tmp_path}/d") == names(f"{tmp_path}/d/") == ["0.jsonl", "x/1.parquet"]


def test_a_directory_may_be_called_like_a_file(write, tmp_path):
    write("out.parquet/part-0.parquet", ROWS)
    assert names(f"{tmp_path}/out.parquet") == ["part-0.parquet"]


def test_a_file_that_is_named_twice_is_taken_once_where_it_was_named_first(write, tmp_path):
    for name in ("1.jsonl", "2.jsonl", "3.jsonl"):
        write(name, ROWS)
    assert names(f"{tmp_path}/2.jsonl", f"{tmp_path}/*.jsonl") == ["2.jsonl", "1.jsonl", "3.jsonl"]


def test_files_of_one_name_are_called_by_their_paths(write):
    one, two, other = write("a/x.jsonl", ROWS), write("b/x.jsonl", ROWS), write("b/y.jsonl", ROWS)
    assert names(one, two, other) == [one, two, "y.jsonl"]


def test_a_bracket_may_be_part_of_a_name(write):
    assert names(write("rows[1].jsonl", ROWS)) == ["rows[1].jsonl"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", ("parquet", None)),
        ("a.pq", ("parquet", None)),
        ("A.NDJSON.GZ", ("jsonl", "gzip")),
        ("a.b.json", ("jsonl", None)),
        ("a.csv.bz2", ("csv", "bz2")),
        ("a.tsv.xz", ("csv", "xz")),
        ("a.jsonl.zst", ("jsonl", "zstd")),
        ("a.csv.lz4", ("csv", "lz4")),
        ("a.feather", ("arrow", None)),
    ],
)
def test_the_suffix_says_format_and_compression(write, name, kind):
    (file,) = find_files([write(name, b"x")], "train.path")
    assert (file.format, file.compression) == kind


def test_files_in_memory_and_in_archives_have_full_addresses(write, tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/corpus-files/a/1.jsonl", b"{}\n")
    (file,) = find_files(["memory://corpus-files/**/*.jsonl"], "train.path")
    assert (file.path, file.name) == ("memory:///corpus-files/a/1.jsonl", "a/1.jsonl")
    write("zipped/in/1.jsonl", ROWS)
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "zipped")
    (file,) = find_files([f"zip://in/*.jsonl::{archive}"], "train.path")
    assert (file.path, file.name) == (f"zip://in/1.jsonl::{archive}", "1.jsonl")


def test_identity_follows_the_content_not_the_time(write):
    def identity() -> str:
        return find_files([path], "train.path")[0].identity

    path = write("a.jsonl", ROWS)
    before = identity()
    write("a.jsonl", ROWS)
    assert identity() == before
    Path(path).write_bytes(Path(path).read_bytes().replace(b"a", b"b"))
    assert identity() != before


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("nothing.jsonl", "no such file or directory"),
        ("nothing*.jsonl", "no file matches"),
        ("empty", "no data file there; known are .parquet"),
        ("d*", "it matches only directories"),
        ("*.txt", "unknown kind of file; known are .parquet"),
        ("notes.txt", "unknown kind of file; known are .parquet"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(write, tmp_path, entry, says):
    write("notes.txt", b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dir").mkdir()
    with pytest.raises(RequestError, match=says) as error:
        find_files([f"{tmp_path}/{entry}"], "train.path")
    assert str(error.value).startswith("train.path: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ["nothing.jsonl", "../nothing*.jsonl"])
def test_a_relative_path_that_leads_nowhere_is_told_with_the_place(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as error:
        find_files([entry], "train.path")
    assert str(error.value).endswith(f"; it was looked for in {tmp_path}")
    with pytest.raises(RequestError) as error:
        find_files([f"{tmp_path}/{entry}"], "train.path")
    assert "looked for" not in str(error.value)


def test_an_unknown_filesystem_is_refused_by_name():
    with pytest.raises(RequestError, match=r"train.path: nosuch://x.jsonl: .*nosuch"):
        find_files(["nosuch://x.jsonl"], "train.path")
