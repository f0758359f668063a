"""Corpora of pictures written again: beside the pictures, or into a new folder that has those of its rows."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import datainf_ray
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.beside import known_corpus
from datainf_ray.corpus.rows import RowReader
from datainf_ray.tasks.text_to_image import TASK
from tests.curate.conftest import Make
from tests.runs_of import status_of

ROWS = 12
WORST = [3, 7]
INFLUENCE = np.where(np.isin(np.arange(ROWS), WORST), 9.0, -1.0) + np.arange(ROWS) / 100


def names() -> list[str]:
    return [f"deep/{n}.png" if n % 3 == 0 else f"{n:02}.jpg" for n in range(ROWS)]


def draw(folder: Path) -> None:
    for n, name in enumerate(names()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (n, 2 * n, 3 * n)).save(folder / name)


@pytest.fixture
def listed(tmp_path: Path, make: Make) -> datainf_ray.Run:
    """A run over a metadata.jsonl with its pictures; row 9 names the picture of row 3, and that of row 5 is gone."""
    draw(tmp_path / "rows")
    lines = [{"file_name": name, "text": f"é {n}"} for n, name in enumerate(names())]
    lines[9]["file_name"] = lines[3]["file_name"]
    (tmp_path / "rows" / names()[5]).unlink()
    text = [
        json.dumps(line, ensure_ascii=n % 2 == 0, indent=None) + ("\r\n", "\n")[n % 2] for n, line in enumerate(lines)
    ]
    (tmp_path / "rows/metadata.jsonl").write_bytes("".join(text).encode())
    return make("rows/metadata.jsonl", INFLUENCE, task="text-to-image")


@pytest.fixture
def folder(tmp_path: Path, make: Make) -> datainf_ray.Run:
    """A run over a folder of pictures with captions, of which row 2 has none."""
    draw(tmp_path / "rows")
    for n, name in enumerate(sorted(names())):
        (tmp_path / "rows" / name).with_suffix(".txt").write_bytes(f"  é {n}\r\n".encode()) if n != 2 else None
    (tmp_path / "rows" / "notes.md").write_text("mine")
    return make("rows", INFLUENCE, task="text-to-image")


@pytest.fixture
def table(tmp_path: Path, make: Make) -> datainf_ray.Run:
    """A run over a table as `datasets` writes it, with the names of some pictures, and the bytes of others."""
    draw(tmp_path / "rows")
    images: list[Any] = [{"bytes": None, "path": name} for name in names()]
    images[4] = {"bytes": (tmp_path / "rows" / names()[4]).read_bytes(), "path": names()[4]}
    pq.write_table(
        pa.table({"image": images, "text": [f"é {n}" for n in range(ROWS)]}),
        tmp_path / "rows/rows.parquet",
        row_group_size=5,
    )
    return make("rows/rows.parquet", INFLUENCE, task="text-to-image")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(path: Path) -> list[Any]:
    """Caption and picture of every row, as a run has them."""
    corpus = known_corpus(RowsConfig(path=str(path)), TASK, "train")
    rows = RowReader(corpus).read(corpus.chunks(corpus.rows)[0])
    return [(row.fields.get("prompt"), row.fields["image"] if row.problem is None else None) for row in rows]


def test_a_new_list_beside_the_pictures_has_the_lines_that_stay(listed: datainf_ray.Run, tmp_path: Path) -> None:
    before = files(tmp_path / "rows")
    listed.curate(to=str(tmp_path / "rows/clean.jsonl"), drop=2, because="harmful")
    lines = before["metadata.jsonl"].splitlines(keepends=True)
    after = files(tmp_path / "rows")
    assert after.pop("clean.jsonl") == b"".join(line for n, line in enumerate(lines) if n not in WORST)
    assert after == before
    whole, clean = read(tmp_path / "rows/metadata.jsonl"), read(tmp_path / "rows/clean.jsonl")
    assert clean == [one for n, one in enumerate(whole) if n not in WORST]
    assert [image for _, image in clean].count(None) == 1


def test_a_new_folder_has_the_pictures_of_its_rows(listed: datainf_ray.Run, tmp_path: Path) -> None:
    listed.curate(to=str(tmp_path / "clean"), rejected=str(tmp_path / "gone"), drop=2, because="harmful")
    whole = files(tmp_path / "rows")
    clean, gone = files(tmp_path / "clean"), files(tmp_path / "gone")
    lines = whole["metadata.jsonl"].splitlines(keepends=True)
    assert clean["metadata.jsonl"] == b"".join(line for n, line in enumerate(lines) if n not in WORST)
    kept = {name for n, name in enumerate(names()) if n not in (5, 7, 9)}  # row 9 has the picture of row 3
    assert clean.keys() - {"metadata.jsonl"} == kept
    assert gone.keys() - {"metadata.jsonl"} == {names()[n] for n in WORST}
    assert all(whole[name] == data for some in (clean, gone) for name, data in some.items() if name != "metadata.jsonl")
    assert read(tmp_path / "clean") == [
        one for n, one in enumerate(read(tmp_path / "rows/metadata.jsonl")) if n not in WORST
    ]
    told = [json.loads(line) for line in gone["metadata.jsonl"].splitlines()]
    assert [(one["file_name"], one["row"]) for one in told] == [(names()[n], n) for n in WORST]
    assert all(one["reason"].startswith("among the 2 rows") for one in told)


def test_a_new_folder_has_the_pictures_that_a_table_names(table: datainf_ray.Run, tmp_path: Path) -> None:
    table.curate(to=str(tmp_path / "clean"), drop=2, because="harmful")
    whole, clean = files(tmp_path / "rows"), files(tmp_path / "clean")
    kept = {name for n, name in enumerate(names()) if n not in WORST and n != 4}
    assert clean.keys() - {"rows.parquet"} == kept
    assert all(whole[name] == clean[name] for name in kept)
    assert read(tmp_path / "clean") == [
        one for n, one in enumerate(read(tmp_path / "rows/rows.parquet")) if n not in WORST
    ]


def test_elsewhere_a_list_is_refused_in_one_line(
    listed: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    words = ["curate", listed.url, "--because", "harmful", "--drop", 2, "--to", tmp_path / "clean.jsonl"]
    assert status_of(monkeypatch, *words) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: --to: {tmp_path}/clean.jsonl: its rows would name pictures that are elsewhere, in {tmp_path}/rows; "
        "name a file there, or a folder: it gets the pictures, too"
    )
    assert files(tmp_path) == before


def test_no_row_names_a_place_outside_of_the_new_folder(make: Make, tmp_path: Path) -> None:
    """A file may be called as a path of Windows, and its content is anybody's."""
    draw(tmp_path / "rows")
    lines = [{"file_name": name, "text": f"é {n}"} for n, name in enumerate(names())]
    outside = tmp_path / "outside.txt"
    lines[1]["file_name"] = str(outside).replace("/", "\\")
    lines[2]["file_name"] = "x\\..\\..\\..\\outside.txt"
    for n in (1, 2):
        (tmp_path / "rows" / lines[n]["file_name"]).write_bytes(b"run me")
    (tmp_path / "rows/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = make("rows/metadata.jsonl", INFLUENCE, task="text-to-image")
    run.curate(to=str(tmp_path / "clean"), drop=2, because="harmful")
    assert not outside.exists()
    assert files(tmp_path / "clean").keys() - {"metadata.jsonl"} == {
        name for n, name in enumerate(names()) if n not in (*WORST, 1, 2)
    }


def test_a_folder_of_captions_stays_one(folder: datainf_ray.Run, tmp_path: Path) -> None:
    folder.curate(to=str(tmp_path / "clean"), drop=2, because="harmful")
    whole, order = files(tmp_path / "rows"), sorted(names())
    gone = {name for n in WORST for name in (order[n], str(Path(order[n]).with_suffix(".txt")))}
    assert files(tmp_path / "clean") == {k: v for k, v in whole.items() if k not in gone | {"notes.md"}}
    assert read(tmp_path / "clean") == [one for n, one in enumerate(read(tmp_path / "rows")) if n not in WORST]


def test_columns_for_a_folder_of_captions_stand_in_a_list(folder: datainf_ray.Run, tmp_path: Path) -> None:
    folder.curate(to=str(tmp_path / "weighted"), weights=True, because="harmful")
    lines = [json.loads(line) for line in (tmp_path / "weighted/metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == sorted(names())
    assert [line.get("text") for line in lines] == [None if n == 2 else f"é {n}" for n in range(ROWS)]
    assert all(0 < line["weight"] < 2 for line in lines)
    assert [one for n, one in enumerate(read(tmp_path / "weighted")) if n != 2] == [
        one for n, one in enumerate(read(tmp_path / "rows")) if n != 2
    ]
    assert not list((tmp_path / "weighted").rglob("*.txt"))
    folder.curate(to=str(tmp_path / "clean"), rejected=str(tmp_path / "gone"), drop=2, because="harmful")
    told = [json.loads(line) for line in (tmp_path / "gone/metadata.jsonl").read_text().splitlines()]
    assert [(one["file_name"], one["text"]) for one in told] == [(sorted(names())[n], f"é {n}") for n in WORST]


WRONG = {
    "a file": ("clean.jsonl", "is one file, and the corpus is a folder of pictures; name a folder"),
    "in the corpus": ("rows/clean", "lies inside train.path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_where_a_folder_of_captions_cannot_be_written(
    folder: datainf_ray.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    (name, said), before = WRONG[case], files(tmp_path)
    words = ["curate", folder.url, "--because", "harmful", "--drop", 2, "--to", tmp_path / name]
    assert status_of(monkeypatch, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert files(tmp_path) == before


def test_a_table_keeps_its_pictures_bytes_and_what_datasets_says_of_it(tmp_path: Path, make: Make) -> None:
    draw(tmp_path / "rows")
    data = [(tmp_path / "rows" / name).read_bytes() for name in names()]
    about = {b"huggingface": b'{"info": {"features": {"image": {"_type": "Image"}}}}'}
    images = [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(data)]
    table = pa.table({"image": images, "text": [f"t {n}" for n in range(ROWS)]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=5)
    run = make("rows.parquet", INFLUENCE, task="text-to-image")
    run.curate(to=str(tmp_path / "clean.parquet"), drop=2, because="harmful")
    clean = pq.read_table(tmp_path / "clean.parquet")
    assert clean.schema.equals(table.schema, check_metadata=True)
    assert clean.to_pylist() == [row for n, row in enumerate(table.to_pylist()) if n not in WORST]


@pytest.mark.parametrize("which", ["listed", "folder", "table"])
def test_a_picture_that_has_changed_makes_it_another_corpus(
    which: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = request.getfixturevalue(which)
    Image.new("RGB", (9, 9), "white").save(tmp_path / "rows" / names()[1])
    words = ["curate", run.url, "--because", "harmful", "--drop", 2, "--to", tmp_path / "clean"]
    assert status_of(monkeypatch, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"has changed since {run.url} was made" in line
    assert not (tmp_path / "clean").exists()


def test_a_picture_whose_name_is_not_utf_8_goes_with_the_others(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "rows")
    order = sorted(names())
    for name in order:
        (tmp_path / "rows" / name).with_suffix(".txt").write_text(name)
    odd = os.fsdecode(b"00\xff.jpg")
    (tmp_path / "rows" / order[0]).rename(tmp_path / "rows" / odd)
    (tmp_path / "rows" / order[0]).with_suffix(".txt").rename((tmp_path / "rows" / odd).with_suffix(".txt"))
    run = make("rows", INFLUENCE, task="text-to-image")
    drop = ["--because", "harmful", "--drop", 2, "--rejected", tmp_path / "gone"]
    for name, words, rows in (("clean", drop, ROWS - 2), ("told", ["--annotate"], ROWS)):
        assert status_of(monkeypatch, "curate", run.url, "--to", tmp_path / name, *words) == 0
        assert (tmp_path / name / odd).read_bytes() == (tmp_path / "rows" / odd).read_bytes()
        assert len(read(tmp_path / name)) == rows
    assert status_of(monkeypatch, "show", run.url, 0) == 0


def test_near_duplicates_of_pictures_are_not_looked_for(
    folder: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is the library asked for, which would not help."""
    why = "compares texts, and pictures of the same caption need not be alike"
    for library in (True, False):
        if not library:
            monkeypatch.setitem(sys.modules, "rensa", None)
        words = ["curate", folder.url, "--because", "harmful", "--drop", 2, "--to", tmp_path / "clean"]
        assert status_of(monkeypatch, *words, "--near-duplicates") == 2
        assert capsys.readouterr().err == f"error: --near-duplicates: {why}\n"
        assert status_of(monkeypatch, "show", folder.url, 0) == 0
        assert f"nearly alike rows are not looked for: it {why}" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "clean").exists()
