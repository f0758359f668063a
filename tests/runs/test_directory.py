from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import yaml

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import patience
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import table_bytes
from tests import tiny
from tests.faults import careless_s3
from tests.runs_of import COMMAND, write_table


def test_a_folder_is_removed_whole_and_alone(directory: RunDirectory) -> None:
    for name in ("run.json", "checkpoints/a.json", "checkpoints/b/c.json", "checkpoints2"):
        directory.write(name, b"1")
    for _ in range(2):  # fine if it is not there
        directory.remove_files("checkpoints", re.compile(r"[abc/]+\.json"))
    assert directory.list() == ["checkpoints2", "run.json"]
    assert directory.entries() == [*([".datainf"] if directory.local else []), "checkpoints2", "run.json"]


def test_files_of_others_stay_in_a_folder_that_is_removed(directory: RunDirectory) -> None:
    for name in ("a.json", "b/c.json", "b/mine.txt", "d/e.json", "mine"):
        directory.write(f"checkpoints/{name}", b"1")
    directory.remove_files("checkpoints", re.compile(r"[a-z/]+\.json"))
    assert directory.list() == ["checkpoints/b/mine.txt", "checkpoints/mine"]
    if directory.local:
        assert not os.path.exists(directory.path("checkpoints/d"))


def test_a_link_to_a_folder_is_not_followed_when_files_are_removed(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.json").write_text("1")
    directory.write("checkpoints/a.json", b"1")
    (tmp_path / "run" / "checkpoints" / "b").symlink_to(tmp_path / "other")
    directory.remove_files("checkpoints", re.compile(".*"))
    assert (tmp_path / "other" / "a.json").read_text() == "1"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_read(tmp_path: Path, make: Any) -> None:
    directory = RunDirectory(str(tmp_path))
    make(directory.path("run.json"))
    with pytest.raises(OSError, match=r"is not a regular file|Is a directory"):
        directory.read("run.json")


def test_what_is_written_is_read_and_listed(directory: RunDirectory) -> None:
    assert directory.list() == []
    assert not directory.exists("run.json")
    directory.write("run.json", b"first")
    directory.write("run.json", b"second")
    directory.write("examples/part-1.parquet", b"1")
    directory.write("examples/part-0.parquet", b"")
    assert directory.read("run.json") == b"second"
    assert directory.read("examples/part-0.parquet") == b""
    assert directory.exists("run.json")
    assert not directory.exists("run.jso")
    assert not directory.exists("examples")
    assert directory.list() == ["examples/part-0.parquet", "examples/part-1.parquet", "run.json"]
    assert directory.list("examples/") == ["examples/part-0.parquet", "examples/part-1.parquet"]
    assert directory.list("examples/part-1") == ["examples/part-1.parquet"]
    assert directory.list("parts/") == []
    opens = directory.options.get(directory.url.partition("://")[0], {})
    with fsspec.open(directory.path("run.json"), **opens) as file:
        assert file.read() == b"second"


def test_a_missing_file_is_a_file_not_found_error(directory: RunDirectory) -> None:
    with pytest.raises(FileNotFoundError):
        directory.read("run.json")


def test_commit_creates_once_and_what_was_there_first_stays(directory: RunDirectory) -> None:
    assert directory.commit("examples/part-0.parquet", b"abc")
    assert directory.commit("examples/part-0.parquet", b"abc")
    assert not directory.commit("examples/part-0.parquet", b"abd")
    assert directory.read("examples/part-0.parquet") == b"abc"
    assert directory.list() == ["examples/part-0.parquet"]


def test_of_many_that_commit_at_once_one_wins(directory: RunDirectory) -> None:
    won: list[bytes] = []
    start = threading.Barrier(8)

    def commit(data: bytes) -> None:
        start.wait()
        if directory.commit("part", data):
            won.append(data)

    threads = [threading.Thread(target=commit, args=(bytes([n]) * 100_000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if directory.fs.protocol == "memory":  # looks and then writes; it is for one process's own trials
        assert won
    else:
        assert won == [directory.read("part")]


def test_a_stream_becomes_a_file_at_its_end_and_none_if_it_breaks(directory: RunDirectory) -> None:
    with directory.writing("examples/part-0.parquet") as stream:
        stream.write(b"ab")
        assert not directory.exists("examples/part-0.parquet")
        stream.write(b"c")
    assert directory.read("examples/part-0.parquet") == b"abc"
    with pytest.raises(KeyboardInterrupt), directory.writing("examples/part-0.parquet") as stream:  # noqa: PT012
        stream.write(b"d")
        raise KeyboardInterrupt
    assert directory.read("examples/part-0.parquet") == b"abc"
    assert [os.path.basename(path) for path in directory.fs.find(directory.root)] == ["part-0.parquet"]


def test_what_killed_writers_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    names = (".mine", ".mine.tmp", "examples/.a.tmp", "examples/a.tmp", "examples/part-0.parquet", "run.json")
    for name in names:
        directory.write(name, b"1")
    with pytest.raises(FileNotFoundError), directory.writing("examples/part-1.parquet"):  # noqa: PT012
        assert len(directory.fs.find(directory.root)) == 7
        directory.remove_temporaries()  # and its own is gone
    assert sorted(directory.fs.find(directory.root)) == [f"{tmp_path}/{name}" for name in names]
    RunDirectory("memory://nothing/there").remove_temporaries()


def test_files_whose_names_begin_with_a_dot_are_not_listed(directory: RunDirectory) -> None:
    directory.write(".part-0.tmp", b"x")
    directory.write("examples/.part-0.tmp", b"x")
    directory.write(".cache/part-0", b"x")
    directory.write("examples/part-0", b"x")
    assert directory.list() == ["examples/part-0"]


def test_json_and_tables_come_back(directory: RunDirectory) -> None:
    directory.write_json("run.json", {"a": [1, None], "ж": "☃"})
    assert directory.read_json("run.json") == {"a": [1, None], "ж": "☃"}
    table = pa.table({"x": [1, 2]})
    write_table(directory, "a.parquet", table)
    assert directory.commit("a.parquet", table_bytes(table))
    assert not directory.commit("a.parquet", table_bytes(table.slice(1)))


def test_a_pickled_directory_is_the_same_place(directory: RunDirectory) -> None:
    directory.write("x", b"1")
    again = pickle.loads(pickle.dumps(directory))
    assert again.read("x") == b"1"
    assert (again.url, again.key) == (directory.url, directory.key)


def test_checking_that_a_directory_is_writable_leaves_nothing(directory: RunDirectory) -> None:
    directory.check_writable()
    assert directory.fs.find(directory.root) == []


@pytest.mark.slow
def test_a_store_that_creates_a_file_twice_is_refused(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    with careless_s3() as url:
        options = {"s3": {"endpoint_url": url, "key": "testing", "secret": "testing"}}
        directory = RunDirectory("s3://careless/run", options=options)
        directory.fs.mkdir("careless")
        with pytest.raises(RequestError, match=r"creates a file that is there already"):
            directory.check_writable()
        assert directory.fs.find("careless") == []
        config = tiny.configuration(tmp_path, tiny_llama, "s3://careless/run", storage_options=options)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
        refused = subprocess.run(
            [*COMMAND, "run", str(tmp_path / "c.yaml")], capture_output=True, text=True, timeout=100
        )
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith(
            "error: output: s3://careless/run: the store, or its library here, creates a file"
        )
        assert "Traceback" not in refused.stderr


def test_a_relative_path_stays_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory("runs/a")
    assert directory.url == str(tmp_path / "runs" / "a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    directory.write("x", b"1")
    assert (tmp_path / "runs" / "a" / "x").read_bytes() == b"1"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(str(tmp_path))
    directory.write("x", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (directory.write, directory.commit):
        with pytest.raises(OSError, match="No space"):
            write("x", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()] == [("x", b"old")]


def test_commit_works_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    directory = RunDirectory(str(tmp_path))
    assert directory.commit("x", b"1")
    assert not directory.commit("x", b"2")
    assert [(p.name, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()] == [("x", b"1")]


def _write_for_ever(url: str) -> None:
    directory = RunDirectory(url)
    while True:
        for letter in b"ab":
            directory.write("x", bytes([letter]) * 1_000_000)


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file_even_when_the_writer_is_killed(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    directory.write("x", b"a" * 1_000_000)
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(str(tmp_path),), daemon=True)
    writer.start()
    seen = set()
    while len(seen) < 2:  # until the writer is at work
        seen.add(directory.read("x"))
    for _ in range(50):
        seen.add(directory.read("x"))
        assert directory.list() == ["x"]
    writer.kill()
    writer.join()
    seen.add(directory.read("x"))
    assert seen == {b"a" * 1_000_000, b"b" * 1_000_000}
    assert directory.list() == ["x"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/dev/null/run", r"^output: /dev/null/run: cannot be written: .*Not a directory"),
        ("nope://a/b", r"^output: nope://a/b: is neither a path nor an fsspec URL: .*nope"),
        ("https://127.0.0.1:9/run", r"^output: https://127.0.0.1:9/run: cannot be written: \S"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(url: str, said: str) -> None:
    with patience(0.1), pytest.raises(RequestError, match=said) as caught:
        RunDirectory(url).check_writable()
    assert "\n" not in str(caught.value)


@pytest.mark.cluster
def test_a_bucket_that_is_not_there_is_one_line(bucket: str) -> None:
    with pytest.raises(RequestError, match=r"^output: s3://nope/run: cannot be written: .*bucket"):
        RunDirectory("s3://nope/run").check_writable()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(RequestError, match=r"^output: s3://b/run: .*; pip install 'datainf-ray\[s3\]'"):
        RunDirectory("s3://b/run")
