"""Pictures through the whole command: kills, resumption, an index and its queries; and the small ones that are kept."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import datainf_ray
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.runs.pictures import PICTURES, pictures_by
from datainf_ray.runs.texts import QUERY, ROW
from datainf_ray.session.execute import execute
from tests.diffusion import pipelines
from tests.interrupting import Interrupter, killing_workers
from tests.runs_of import attribute, status_of, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

ROWS, QUERIES, CHUNK, BAD = 60, 3, 4, 5
SIDE = 32


def flat(number: int) -> tuple[int, int, int]:
    """The color of a row's picture."""
    return (7 * number % 256, 97 * number % 256, 211 * number % 256)


def write_pictures(folder: Path, count: int, first: int = 0) -> list[dict[str, str]]:
    """PNG, JPEG and WebP in turn, each of a color of its own, with a metadata.jsonl."""
    folder.mkdir()
    lines = []
    for number in range(first, first + count):
        kind = ("png", "jpg", "webp")[number % 3]
        lines.append({"file_name": f"{number}.{kind}", "text": f"color {number}"})
        Image.new("RGB", (40, 36 + number % 9), flat(number)).save(folder / lines[-1]["file_name"], quality=95)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A configuration and the files of an undisturbed run of it, by one worker, with an index."""
    folder = tmp_path_factory.mktemp("pictures")
    model = pipelines.make(folder, "sd")
    lines = write_pictures(folder / "train", ROWS)
    bad = folder / "train" / lines[BAD]["file_name"]
    bad.write_bytes(bad.read_bytes()[:40])
    write_pictures(folder / "asked", QUERIES, 200)
    config = {
        "model": model, "output": str(folder / "run"), "index": True,
        "train": {"path": str(folder / "train/metadata.jsonl"), "id": "file_name"},
        "queries": {"path": str(folder / "asked/metadata.jsonl"), "id": "file_name"},
        "diffusion": {"timesteps": pipelines.TIMESTEPS, "resolution": SIDE},
        "cluster": {"max_workers": 1, "chunk_rows": CHUNK, "checkpoint_seconds": 0},
    }  # fmt: skip
    return config, Path(attribute(config).url)


def same_color(picture: bytes, number: int) -> bool:
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("JPEG", (SIDE, SIDE))
        return bool(np.abs(np.asarray(image).astype(int) - flat(number)).max() < 8)


def test_a_run_keeps_small_pictures_of_its_rows_and_queries(quiet: tuple[dict[str, Any], Path]) -> None:
    run = datainf_ray.open_run(quiet[1])
    rows, asked = (pictures_by(run.pictures(), kind) for kind in (ROW, QUERY))
    assert rows.keys() == {*run.tops()["row"].to_pylist()}
    assert BAD not in rows
    assert all(len(some) == 1 and same_color(some[0], row) for row, some in rows.items())
    assert asked.keys() == {*range(QUERIES)}
    assert all(same_color(some[0], 200 + query) for query, some in asked.items())
    assert run.record.files[PICTURES].bytes == (quiet[1] / PICTURES).stat().st_size
    (preview,) = [one["preview"] for one in run.queries().to_pylist() if one["query"] == 1]
    assert re.fullmatch(r"color 201 ⟶ image: 201\.png, 40 × 39 pixels, \d+ bytes", preview)
    page = (quiet[1] / "report.html").read_text()
    assert page.count("<img ") > 2 * 3 * 10
    assert "img-src data:;" in page


@pytest.mark.slow
def test_killed_workers_change_nothing(quiet: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config, run = quiet
    with killing_workers():
        disturbed = attribute(config, output=str(tmp_path / "disturbed"), **{"cluster.max_workers": 2})
    assert tables(disturbed) == tables(run)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["queries", "scores"])
def test_an_interrupted_run_is_taken_up_by_two_workers(
    quiet: tuple[dict[str, Any], Path], tmp_path: Path, sweep: str
) -> None:
    config, run = quiet
    cut = load_config(config, output=str(tmp_path / "cut"), gradients="recompute")
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(cut), Interrupter(sweep, 1 if sweep == "queries" else 5))
    assert not (tmp_path / "cut" / PICTURES).exists()
    watcher = Interrupter()
    again = execute(prepare(load_config(cut, **{"cluster.max_workers": 2})), watcher)
    if sweep == "scores":
        assert "scores: 20 rows taken up from an earlier attempt" in watcher.said
    assert tables(again) == tables(run)


@pytest.mark.slow
def test_new_pictures_are_asked_of_an_index_when_the_corpus_is_gone(
    quiet: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, run = quiet
    write_pictures(tmp_path / "new", 2, 300)
    fresh = {"path": str(tmp_path / "new/metadata.jsonl"), "id": "file_name"}
    whole = attribute(config, output=str(tmp_path / "whole"), queries=fresh, index=None)
    (run.parent / "train").rename(run.parent / "gone")
    try:
        words = ["query", run, "--queries", fresh["path"], "--output", tmp_path / "answers"]
        assert status_of(monkeypatch, *words, "--set", "queries.id=file_name") == 0
    finally:
        (run.parent / "gone").rename(run.parent / "train")
    answers = datainf_ray.open_run(tmp_path / "answers")
    assert (
        answers.tops()
        .select(["query", "direction", "rank", "row", "preview"])
        .equals(whole.tops().select(["query", "direction", "rank", "row", "preview"]))
    )
    assert answers.pictures().equals(whole.pictures())
    assert all(same_color(some[0], 300 + n) for n, some in pictures_by(answers.pictures(), QUERY).items())
    assert "img-src data:;" in (tmp_path / "answers" / "report.html").read_text()
    capsys.readouterr()
    assert status_of(monkeypatch, "top", answers.url, "--query", "300.png") == 0
    shown = capsys.readouterr().out
    assert "color 300 ⟶ image: 300.png" in " ".join(shown.split())
    assert "JFIF" not in shown


def test_check_tries_a_chunk_of_pictures(
    quiet: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = quiet[0] | {"output": str(tmp_path / "run")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert status_of(monkeypatch, "check", tmp_path / "c.yaml", "--json") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert all(one["ok"] for one in found.values())
    assert f"{ROWS} training rows, {QUERIES} queries" in found["request"]["detail"]
    assert "tokens/s" in found["one chunk"]["detail"]
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file()]


def test_an_index_of_text_has_no_pictures_and_one_of_pictures_has(quiet: tuple[dict[str, Any], Path]) -> None:
    parts = [pq.read_table(part) for part in sorted((quiet[1] / "index").glob("part-*.parquet"))]
    table = pa.concat_tables(parts, promote_options="default")
    assert [row for row, one in enumerate(table["picture"].to_pylist()) if one is None] == [BAD]


def test_a_table_that_names_pictures_is_another_corpus_when_one_changes(
    quiet: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `datasets` writes them: {bytes: null, path}. The run is done, then refused; and so is what is made of it."""
    names = [one["file_name"] for one in write_pictures(tmp_path / "train", 6)]
    table = {"image": [{"bytes": None, "path": name} for name in names], "text": [f"color {n}" for n in range(6)]}
    pq.write_table(pa.table(table), tmp_path / "train/rows.parquet")
    rows = {"train": {"path": str(tmp_path / "train/rows.parquet")}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(quiet[0] | rows | {"output": str(tmp_path / "run"), "index": None}))
    assert status_of(monkeypatch, "run", tmp_path / "c.yaml") == 0
    run = datainf_ray.open_run(tmp_path / "run")
    assert {*run.examples()["status"].to_pylist()} == {"ok"}
    capsys.readouterr()
    assert status_of(monkeypatch, "run", tmp_path / "c.yaml") == 0
    assert "already done" in capsys.readouterr().err
    Image.new("RGB", (40, 36), (1, 2, 3)).save(tmp_path / "train" / names[4])
    assert status_of(monkeypatch, "run", tmp_path / "c.yaml") == 2
    assert "holds another run" in capsys.readouterr().err
    words = ["curate", run.url, "--because", "harmful", "--drop", 1, "--to", tmp_path / "clean"]
    assert status_of(monkeypatch, *words) == 2
    assert f"has changed since {run.url} was made" in capsys.readouterr().err
