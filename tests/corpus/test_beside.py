"""A corpus knows the pictures that its rows name: one that is changed, gone or new makes it another; no others do."""

from __future__ import annotations

import io
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
from datainf_ray.corpus.beside import known_corpus, names_in
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.files import SourceFile
from datainf_ray.tasks.causal_lm import TASK as TEXT
from datainf_ray.tasks.text_to_image import TASK


def picture(path: Path, color: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "deep/er/b.png", "c.png", "not-named.png", "deep/win.png"):
        picture(tmp_path / "rows" / name, "red")
    lines = [
        {"file_name": name, "text": "x"}
        for name in ("a.png", "deep/er/b.png", "c.png", "gone.png", "../c.png", "a.png", "deep\\win.png")
    ]
    (tmp_path / "rows/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows"


def known(path: object, name: str = "metadata.jsonl") -> str:
    return known_corpus(RowsConfig(path=f"{path}/{name}"), TASK, "train").fingerprint()


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda folder: None, False),
    "another picture": (lambda folder: picture(folder / "a.png", "blue"), True),
    "one that is named as Windows does": (lambda folder: picture(folder / "deep/win.png", "blue"), True),
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
    for name in ("a\0.png", "\0/a.png", "\ud800.png", "x" * 5000, "y/" * 3000 + "a.png", "a.png/b.png", "."):
        line = json.dumps({"file_name": name, "text": "x"})
        (folder / "metadata.jsonl").write_text(f"{line}\n")
        assert isinstance(known(folder), str)


def test_rows_of_text_are_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "image": "a.png"}\n')
    rows = RowsConfig(path=str(tmp_path / "rows.jsonl"))
    assert known_corpus(rows, TEXT, "train") == plan_corpus(rows, TEXT, "train")


def write_structs(path: Path, images: list[dict[str, object] | None], groups: int = 2) -> None:
    """Rows as `datasets` has them, {bytes, path}, in `groups` groups; Parquet, an Arrow file or stream, by the name."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "text": ["x"] * len(images)})
    rows = -(-len(images) // groups)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
        return
    make = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, rows)


TABLES = ("rows.parquet", "rows.arrow", "stream.arrow")


@pytest.mark.parametrize("name", TABLES)
def test_structs_of_names_are_known_by_the_pictures_that_they_name(folder: Path, name: str) -> None:
    data = (folder / "a.png").read_bytes()
    both = [None, {"bytes": data, "path": "a.png"}, {"bytes": b"", "path": "a.png"}, {"bytes": None, "path": None}]
    names: list[dict[str, object] | None] = [{"bytes": None, "path": name} for name in ("c.png", "deep/er/b.png")]
    cases = {"names": names, "mixed": both + names, "bytes": both}
    before = {}
    for case, images in cases.items():
        (folder / case).mkdir()
        for one in ("a.png", "c.png", "deep/er/b.png"):
            picture(folder / case / one, "red")
        write_structs(folder / case / name, images)
        before[case] = known(folder / case, name)
    plain = {case: plan_corpus(RowsConfig(path=f"{folder}/{case}/{name}"), TASK, "train") for case in cases}
    assert {case: before[case] == plain[case].fingerprint() for case in cases} == {
        "names": False, "mixed": False, "bytes": True
    }  # fmt: skip
    for changed, others in (("a.png", []), ("c.png", ["names", "mixed"]), ("deep/er/b.png", ["names", "mixed"])):
        for case in cases:
            picture(folder / case / changed, "blue")
        after = {case: known(folder / case, name) for case in cases}
        assert [case for case in cases if after[case] != before[case]] == others
        before = after


def test_rows_that_have_bytes_are_not_read_for_their_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group whose rows all have bytes nothing is read, and names are read without what lies between them."""
    size = 4 * 2**20
    full: list[dict[str, object] | None] = [{"bytes": os.urandom(size), "path": "a.png"} for _ in range(4)]
    bare: list[dict[str, object] | None] = [{"bytes": None, "path": "a.png"} for _ in range(4)]
    write_structs(folder / "rows.parquet", full + bare)
    rows = RowsConfig(path=f"{folder}/rows.parquet")
    planned = plan_corpus(rows, TASK, "train")
    monkeypatch.setattr("datainf_ray.corpus.tables.open_seekable", counted := Counting())
    assert list(names_in(planned, 0)) == ["a.png"] * 4
    assert counted.bytes < size / 8


class Counting:
    """Opens files, and counts the bytes that are read of them."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, file: SourceFile) -> pa.NativeFile:
        counting, raw = self, open(file.path, "rb")  # noqa: SIM115 - pyarrow's file keeps it open

        class Reader(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                data = raw.read(size)
                counting.bytes += len(data)
                return data

            def seek(self, *where: int) -> int:
                return raw.seek(*where)

            def tell(self) -> int:
                return raw.tell()

            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

        return pa.PythonFile(Reader(), mode="r")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_names_among_pictures_take_no_more_memory_the_more_rows_there_are(folder: Path, name: str) -> None:
    """Rows with bytes and rows with names in every group."""
    peaks = []
    for groups in (2, 12):
        images: list[dict[str, object] | None] = [
            {"bytes": os.urandom(2**20), "path": "a.png"} if k % 10 else {"bytes": None, "path": "c.png"}
            for k in range(10 * groups)
        ]
        write_structs(folder / name, images, groups)
        planned = plan_corpus(RowsConfig(path=f"{folder}/{name}"), TASK, "train")
        del images
        before, tops = pa.total_allocated_bytes(), []
        for one in names_in(planned, 0):
            assert one == "c.png"
            tops.append(pa.total_allocated_bytes() - before)
        assert len(tops) == groups
        peaks.append(max(tops))
    assert peaks[1] <= 1.2 * peaks[0] + 2**20


def test_a_table_whose_first_row_has_no_name_is_read_on(folder: Path) -> None:
    pq.write_table(pa.table({"image": [None, "a.png"], "text": ["x", "y"]}), folder / "names.parquet")
    before = known(folder, "names.parquet")
    picture(folder / "a.png", "blue")
    assert known(folder, "names.parquet") != before


@pytest.mark.parametrize("name", TABLES)
def test_structs_of_names_in_a_store(folder: Path, name: str) -> None:
    """Of an Arrow file there, whose columns are read whole, the first batch tells whether rows have bytes."""
    data = (folder / "a.png").read_bytes()
    bare: list[dict[str, object] | None] = [{"bytes": None, "path": "a.png"}]
    full: list[dict[str, object] | None] = [{"bytes": data, "path": "a.png"}]
    for images, others in ((bare + full, True), (full + bare, name == "rows.parquet"), (full, False)):
        write_structs(folder / name, images, len(images))
        fs, root = store_of("memory://structs", {})
        fs.put(f"{folder}/", f"{root}/", recursive=True)
        before = known("memory://structs", name)
        fs.pipe_file(f"{root}/a.png", b"longer than it was, or shorter")
        assert (known("memory://structs", name) != before) == others


def test_rows_that_cannot_be_decoded_name_nothing(folder: Path) -> None:
    path = folder / "rows.parquet"
    write_structs(path, [{"bytes": None, "path": name} for name in ("a.png", "c.png", "a.png", "deep/er/b.png")])
    whole = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    planned = plan_corpus(RowsConfig(path=str(path)), TASK, "train")
    assert list(names_in(planned, 0)) == ["a.png", "deep/er/b.png"]


def test_a_path_that_is_not_utf_8_is_no_reason_to_fail(folder: Path) -> None:
    paths = pa.array([b"\xff.png", b"a.png"], pa.binary()).view(pa.string())
    structs = pa.StructArray.from_arrays([pa.array([None, None], pa.binary()), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": structs, "text": ["x", "y"]}), folder / "rows.parquet")
    before = known(folder, "rows.parquet")
    picture(folder / "a.png", "blue")
    assert known(folder, "rows.parquet") != before
