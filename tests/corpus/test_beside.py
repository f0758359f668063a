"""A corpus knows the pictures that its rows name: one that is changed, gone or new makes it another; no others do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datainf_ray.common.storage import store_of
from datainf_ray.config import RowsConfig
from datainf_ray.corpus import pictures
from datainf_ray.corpus.beside import known_corpus
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.tasks.causal_lm import TASK as TEXT
from datainf_ray.tasks.text_to_image import TASK


def picture(path: Path, color: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "deep/er/b.png", "c.png", "not-named.png"):
        picture(tmp_path / "rows" / name, "red")
    lines = [
        {"file_name": name, "text": "x"}
        for name in ("a.png", "deep/er/b.png", "c.png", "gone.png", "../c.png", "a.png")
    ]
    (tmp_path / "rows/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows"


def known(path: object, name: str = "metadata.jsonl") -> str:
    return known_corpus(RowsConfig(path=f"{path}/{name}"), TASK, "train").fingerprint()


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda folder: None, False),
    "another picture": (lambda folder: picture(folder / "a.png", "blue"), True),
    "another one deeper": (lambda folder: picture(folder / "deep/er/b.png", "blue"), True),
    "one is gone": (lambda folder: (folder / "c.png").unlink(), True),
    "one has come": (lambda folder: picture(folder / "gone.png", "red"), True),
    "one that no row names": (lambda folder: picture(folder / "not-named.png", "blue"), False),
    "one outside": (lambda folder: picture(folder.parent / "c.png", "blue"), False),
    "a pipe of that name": (lambda folder: os.mkfifo(folder / "gone.png"), False),
    "a line": (lambda folder: (folder / "metadata.jsonl").open("a").write('{"file_name": "a.png"}\n'), True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("large", [False, True])
def test_a_corpus_is_another_when_a_picture_is(
    folder: Path, change: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # known by their times
        monkeypatch.setattr(pictures, "_HASHED", 0)
    make, other = CHANGES[change]
    before = known(folder)
    assert before != plan_corpus(RowsConfig(path=f"{folder}/metadata.jsonl"), TASK, "train").fingerprint()
    make(folder)
    assert (known(folder) != before) == other


def test_one_that_was_moved_is_the_same(folder: Path) -> None:
    before = known(folder)
    assert known(folder.rename(folder.parent / "moved")) == before


def test_in_a_store_it_is_known_by_what_the_store_says(folder: Path) -> None:
    fs, root = store_of("memory://beside", {})
    fs.put(f"{folder}/", f"{root}/", recursive=True)
    assert isinstance(known("memory://beside"), str)
    before = known("memory://beside")
    fs.pipe_file(f"{root}/a.png", b"longer than it was, or shorter")
    assert known("memory://beside") != before


def test_a_table_of_names_is_known_by_them_and_one_of_bytes_by_itself(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    pq.write_table(pa.table({"image": ["a.png", "c.png"], "text": ["x", "y"]}), folder / "names.parquet")
    both = [{"bytes": data, "path": "a.png"}, {"bytes": data, "path": "c.png"}]
    pq.write_table(pa.table({"image": both, "text": ["x", "y"]}), folder / "bytes.parquet")
    odd = [data, b"c.png", b"\x89a/b\0c"]  # a name would be text
    pq.write_table(pa.table({"image": odd, "text": ["x", "y", "z"]}), folder / "plain.parquet")
    names = ("names.parquet", "bytes.parquet", "plain.parquet")
    before = [known(folder, name) for name in names]
    for name, one in zip(names[1:], before[1:], strict=True):
        assert one == plan_corpus(RowsConfig(path=f"{folder}/{name}"), TASK, "train").fingerprint()
    picture(folder / "c.png", "blue")
    after = [known(folder, name) for name in names]
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, True, True]


def test_names_that_no_filesystem_takes_are_the_names_of_nothing(folder: Path) -> None:
    for name in ("a\0.png", "\0/a.png", "\ud800.png", "x" * 5000, "."):
        line = json.dumps({"file_name": name, "text": "x"})
        (folder / "metadata.jsonl").write_text(f"{line}\n")
        assert isinstance(known(folder), str)


def test_rows_of_text_are_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "image": "a.png"}\n')
    rows = RowsConfig(path=str(tmp_path / "rows.jsonl"))
    assert known_corpus(rows, TEXT, "train") == plan_corpus(rows, TEXT, "train")
