"""Pictures among rows: as bytes, as `datasets` writes them, as files beside the rows, and as a folder with captions."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig, RowsConfig
from datainf_ray.corpus.chunks import Corpus, plan_corpus
from datainf_ray.corpus.rows import Row, RowReader
from datainf_ray.tasks.register import task_of
from datainf_ray.tasks.text_to_image import TASK

PICTURES = [b"\x89PNG one", b"RIFF two \xff", b"plain"]  # what they are is the decoder's affair
PROMPTS = ["a dog", "a cat", "é"]


def read(path: Path | str, **asked: Any) -> list[Row]:
    corpus = plan_corpus(RowsConfig(path=str(path), **asked), TASK, "train")
    return [row for chunk in corpus.chunks(2) for row in RowReader(corpus).read(chunk)]


def assert_whole(rows: list[Row], names: list[str] | None = None) -> None:
    assert [row.problem for row in rows] == [None] * 3
    assert [row.fields for row in rows] == [
        {"prompt": prompt, "image": data} for prompt, data in zip(PROMPTS, PICTURES, strict=True)
    ]
    assert names is None or [row.id for row in rows] == names


@pytest.mark.parametrize("format", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("shape", ["bytes", "large", "struct"])
def test_a_column_of_a_table(tmp_path: Path, format: str, shape: str) -> None:
    image: Any = pa.array(PICTURES, pa.large_binary() if shape == "large" else pa.binary())
    if shape == "struct":
        image = pa.array([{"bytes": data, "path": "/home/you/x.png"} for data in PICTURES])
    table = pa.table({"picture": image, "caption": PROMPTS, "other": [b"\xff"] * 3})
    path = tmp_path / f"rows.{format}"
    if format == "parquet":
        pq.write_table(table, path)
    elif format == "feather":
        feather.write_feather(table, str(path))
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert_whole(read(path, columns={"image": "picture"}))


def test_what_datasets_saves(tmp_path: Path) -> None:
    features = Features({"image": Image(decode=False), "text": Value("string")})
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "text": PROMPTS}
    saved = Dataset.from_dict(rows, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(str(tmp_path / "rows.parquet"))
    assert_whole(read(tmp_path / "saved"))
    assert_whole(read(tmp_path / "rows.parquet"))


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder as imagefolder has it."""
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    names = ["b.png", "more/a.webp", "c.JPG"]
    for name, data in zip(names, PICTURES, strict=True):
        (folder / name).write_bytes(data)
    lines = [json.dumps({"file_name": n, "text": t}) for n, t in zip(names, PROMPTS, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def captioned(beside: Path) -> Path:
    """The same pictures with captions in place of the metadata."""
    (beside / "metadata.jsonl").unlink()
    (beside / "b.txt").write_text("a dog\n")
    (beside / "more" / "a.caption").write_text("a cat")
    (beside / "c.txt").write_bytes("\ufeffé".encode())
    (beside / "b.npz").write_bytes(b"latents, as trainers keep them")
    return beside


def test_metadata_beside_pictures(beside: Path) -> None:
    assert_whole(read(beside), [f"metadata.jsonl#{k}" for k in range(3)])
    assert_whole(read(beside / "metadata.jsonl", id="file_name"), ["b.png", "more/a.webp", "c.JPG"])


def test_a_folder_with_captions(captioned: Path) -> None:
    rows = read(captioned)
    assert [row.id for row in rows] == ["b.png", "c.JPG", "more/a.webp"]
    assert_whole([rows[0], rows[2], rows[1]])
    (captioned / "c.txt").unlink()
    assert [row.problem for row in read(captioned)] == [None, "its caption is not there: no c.txt", None]
    (captioned / "c.txt").write_bytes(b"\xff")
    assert [row.problem for row in read(captioned)] == [None, "its caption is not UTF-8", None]


def test_pictures_of_two_folders_have_ids_of_their_own(captioned: Path, tmp_path: Path) -> None:
    """As trainers have a folder for each subject, with 0.png in each: noise is drawn by the id."""
    shutil.copytree(captioned, tmp_path / "other")
    corpus = plan_corpus(RowsConfig(path=[str(captioned), str(tmp_path / "other")]), TASK, "train")
    ids = [row.id for row in RowReader(corpus).read(corpus.chunks(6)[0])]
    names = ["b.png", "c.JPG", "more/a.webp"]
    assert ids == [f"{folder}/{name}" for folder in (captioned, tmp_path / "other") for name in names]


def test_a_pattern_of_pictures_is_told_what_would_be_right(captioned: Path) -> None:
    with pytest.raises(RequestError, match=r"b.png: unknown kind of file; .*; or name the folder of the pictures$"):
        plan_corpus(RowsConfig(path=f"{captioned}/*.png"), TASK, "train")
    with pytest.raises(RequestError, match=r"b.png: unknown kind of file; .*\.lz4$"):
        plan_corpus(RowsConfig(path=f"{captioned}/*.png"), task_of(ModelConfig(base="b", adapter="a")), "train")


def test_of_several_splits_one_is_to_be_named(captioned: Path, tmp_path: Path) -> None:
    """As `datasets` has them; a folder that is only called so, beside others, is one of subjects."""
    for name in ("both/train", "both/Test/deep", "toys/train", "toys/car", "alone/test"):
        shutil.copytree(captioned, tmp_path / name)
    with pytest.raises(RequestError) as caught:
        planned(tmp_path / "both")
    assert str(caught.value) == (
        f"train.path: {tmp_path}/both: holds several splits or configurations: train, Test; "
        f'name one, as in path: "{tmp_path}/both/train"'
    )
    assert planned(tmp_path / "both/train").rows == 3
    assert planned(tmp_path / "toys").rows == 6
    assert planned(tmp_path / "alone").rows == 3


def test_columns_of_other_names_are_told_by_an_example(beside: Path) -> None:
    (beside / "metadata.jsonl").write_text('{"image_file_name": "b.png", "texts": "x"}\n')
    with pytest.raises(RequestError, match=r"takes prompt\+image: map them, as in \{prompt: COLUMN, image: COLUMN\}$"):
        planned(beside)


def test_captions_of_cameras_and_windows(captioned: Path) -> None:
    """Suffixes in capitals; where two captions differ in that alone, the one as trainers write it counts."""
    (captioned / "c.txt").rename(captioned / "c.TXT")
    (captioned / "more" / "a.caption").rename(captioned / "more" / "a.Caption")
    (captioned / "b.TXT").write_text("not this one")
    rows = read(captioned)
    assert_whole([rows[0], rows[2], rows[1]])
    before = planned(captioned).fingerprint()
    (captioned / "c.TXT").write_text("another")
    assert planned(captioned).fingerprint() != before


def test_a_name_that_is_not_utf_8_is_a_row_with_a_status(captioned: Path) -> None:
    """Its id is what a row has that has no name, since tables have names in UTF-8 alone."""
    for name in (b"z\xff.png", b"z\xff.txt"):
        Path(os.fsdecode(os.fsencode(captioned) + b"/" + name)).write_bytes(b"x")
    rows = read(captioned)
    assert [(row.id, row.problem) for row in rows[:3]] == [(name, None) for name in ("b.png", "c.JPG", "more/a.webp")]
    assert (rows[3].id, rows[3].problem) == ("#3", "image is not UTF-8")


def test_pictures_in_an_archive(captioned: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(captioned.rglob("*.*")):
            archive.write(path, f"in/{path.relative_to(captioned)}")
    rows = read(f"zip://in::{tmp_path}/set.zip")
    assert_whole([rows[0], rows[2], rows[1]], ["b.png", "more/a.webp", "c.JPG"])


def test_names_as_windows_writes_them(beside: Path) -> None:
    """As `datasets` reads them."""
    text = (beside / "metadata.jsonl").read_text()
    (beside / "metadata.jsonl").write_text(text.replace("more/a.webp", "more\\\\a.webp"))
    assert_whole(read(beside), [f"metadata.jsonl#{k}" for k in range(3)])


def test_odd_names_in_a_folder_are_those_of_its_files(captioned: Path) -> None:
    for name in ("12:30.png", "\\etc\\x.png", "a\\..\\b.png"):
        (captioned / name).write_bytes(b"odd")
        (captioned / name).with_suffix(".txt").write_text(name)
    rows = read(captioned)
    assert [row.problem for row in rows] == [None] * 6
    odd = {row.id: row.fields["prompt"] for row in rows if row.fields["image"] == b"odd"}
    assert len(odd) == 3
    assert all(name == caption for name, caption in odd.items())


def planned(folder: Path) -> Corpus:
    return plan_corpus(RowsConfig(path=str(folder)), TASK, "train")


def test_a_folder_is_known_by_its_content(captioned: Path, tmp_path: Path) -> None:
    before = planned(captioned).fingerprint()
    captioned.rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "b.png", (1, 1))
    assert planned(tmp_path / "moved").fingerprint() == before
    (tmp_path / "moved" / "b.txt").write_text("a bat\n")
    assert planned(tmp_path / "moved").fingerprint() != before
    corpus = planned(tmp_path / "moved")
    (tmp_path / "moved" / "b.png").unlink()
    with pytest.raises(OSError, match="2 pictures instead of 3: it has changed since it was planned"):
        RowReader(corpus).read(corpus.chunks(3)[0])


HOSTILE = {
    "../secret.png": "image is ../secret.png, and only files in the folder of metadata.jsonl are read",
    "more/../../secret.png": "and only files in the folder",
    "..\\secret.png": "and only files in the folder",
    "\\etc\\passwd": "and only files in the folder",
    "\\\\host\\share\\x.png": "and only files in the folder",
    "/etc/passwd": "and only files in the folder",
    "~/secret.png": "and only files in the folder",
    "file:///etc/passwd": "and only files in the folder",
    "http://127.0.0.1/x.png": "and only files in the folder",
    "c:secret.png": "and only files in the folder",
    "absent.png": "image is absent.png, and there is no such file",
    "pipe": "image is pipe, which is no file",
    "more": "image is more, which is no file",
    "b.png/b.png": "and there is no such file",
    "x" * 300: "and there is no such file",
    "y/" * 3000 + "a.png": "and there is no such file",
    "loop": "and there is no such file",
    "": "and only files in the folder",
    "\x00": "image ",
}


def test_a_row_names_no_other_file(beside: Path) -> None:
    (beside.parent / "secret.png").write_bytes(b"secret")
    os.mkfifo(beside / "pipe")
    (beside / "loop").symlink_to("loop")
    with (beside / "metadata.jsonl").open("w") as file:
        for name in [*HOSTILE, 7, None]:
            file.write(json.dumps({"file_name": name, "text": "x"}) + "\n")
    rows = read(beside / "metadata.jsonl")
    for row, said in zip(rows, [*HOSTILE.values(), "image is of type int, and neit", "image is null"], strict=True):
        assert row.problem is not None
        assert said in row.problem, row.problem


def test_pictures_are_no_text(captioned: Path) -> None:
    """A folder of pictures is rows of a task for pictures alone."""
    task = task_of(ModelConfig(base="b", adapter="a"))
    with pytest.raises(RequestError, match="no data file there"):
        plan_corpus(RowsConfig(path=str(captioned)), task, "train")
    (captioned / "nothing").mkdir()
    with pytest.raises(RequestError, match=r"no data file there; .* or pictures, with a .txt file of each one's name$"):
        planned(captioned / "nothing")
