"""Every format: what stays is what was there, byte for byte or value for value."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, load_dataset

import datainf_ray
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.curate.source import read
from datainf_ray.curate.target import Target
from datainf_ray.tasks.causal_lm import TASK
from tests.curate.conftest import Make, lines_of, packed, rows_of, unpacked, write

COUNT = 24
GONE = [0, 1, 8, 23]  #: the first and the last row among them
STAYING = [n for n in range(COUNT) if n not in GONE]
INFLUENCE = np.where(np.isin(np.arange(COUNT), GONE), 3.0, -0.1)
ADDED = ["row", "id", "status", "loss", "influence", "influence_mean", "influence_min", "influence_max"]


def curate(run: datainf_ray.Run, tmp_path: Path, name: str, **asked: Any) -> Path:
    asked = asked or {"drop": len(GONE), "because": "harmful"}
    done = run.curate(to=str(tmp_path / name), **asked)
    assert done.to == str(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.jsonl.xz", "a.csv", "a.csv.gz"]
)
def test_lines_that_stay_have_their_bytes(make: Make, tmp_path: Path, name: str) -> None:
    rows = rows_of(COUNT)
    path = tmp_path / "data" / name
    path.parent.mkdir()
    write(path, rows)
    before = path.read_bytes()
    lines = lines_of(path, rows)
    head = lines[:-COUNT]  # a CSV file's header
    clean = curate(make(f"data/{name}", INFLUENCE), tmp_path, f"clean{name[1:]}")
    assert unpacked(clean) == b"".join([*head, *(lines[len(head) + n] for n in STAYING)])
    assert path.read_bytes() == before
    if name.endswith(".gz"):
        assert clean.read_bytes()[3:8] == bytes(5)  # no name and no time: the same rows give the same bytes
    assert {p.name for p in tmp_path.iterdir()} == {"asked", "data", "run", clean.name}


def test_lines_of_every_kind(make: Make, tmp_path: Path) -> None:
    """Blank lines and a byte-order mark are no rows; what is not JSON, and a last line without an end, are."""
    lines = [json.dumps(row).encode() for row in rows_of(COUNT)]
    lines[3], lines[4] = b'{"prompt": broken', b'  {"prompt": "\xff", "completion": "c"}  '
    text = [b"\xef\xbb\xbf" + lines[0] + b"\n", b"\n", b" \t\r\n", *(line + b"\n" for line in lines[1:-1]), lines[-1]]
    packed(tmp_path / "data" / "a.jsonl", b"".join(text))
    influence = INFLUENCE.copy()
    influence[[3, 4]] = np.nan
    run = make("data/a.jsonl", influence)
    whole = curate(run, tmp_path, "whole.jsonl", drop_above=9, because="harmful")
    assert whole.read_bytes() == b"".join(text)
    clean = curate(run, tmp_path, "clean.jsonl").read_bytes()
    rows = [line + b"\n" for n, line in enumerate(lines) if n in STAYING]
    assert clean == b"\xef\xbb\xbf\n \t\r\n" + b"".join(rows)
    run.curate(to=str(tmp_path / "clean2.jsonl"), rejected=str(tmp_path / "gone.jsonl"), drop=4, because="harmful")
    told = [json.loads(line) for line in (tmp_path / "gone.jsonl").read_text("utf-8-sig").splitlines()]
    assert [(row["row"], row["prompt"]) for row in told] == [(n, f"question {n} é") for n in GONE]


def test_an_array_keeps_its_layout(make: Make, tmp_path: Path) -> None:
    rows = rows_of(COUNT)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.json", rows)
    clean = curate(make("data/a.json", INFLUENCE), tmp_path, "clean.json")
    assert clean.read_text() == json.dumps([rows[n] for n in STAYING], indent=1, ensure_ascii=False) + "\n"
    empty = curate(make("data/a.json", INFLUENCE, name="other"), tmp_path, "empty.json", drop=COUNT, because="harmful")
    assert json.loads(empty.read_text()) == []


@pytest.mark.parametrize("large", [False, True])
def test_parquet_keeps_schema_metadata_and_codec(
    make: Make, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And datasets' features, which stand in the metadata."""
    rows = rows_of(COUNT)
    (tmp_path / "data").mkdir()
    saved = Dataset.from_list(rows).cast_column("topic", ClassLabel(names=["a", "b", "c"]))
    table = saved.data.table.append_column("tags", pa.array([["x", None], None] * 12, pa.list_(pa.string())))
    pq.write_table(table, tmp_path / "data" / "a.parquet", row_group_size=7, compression="gzip")
    if large:  # row groups that are decoded in parts
        monkeypatch.setattr("datainf_ray.curate.tables._BATCH_BYTES", 100)
    clean = curate(make("data/a.parquet", INFLUENCE), tmp_path, "clean.parquet")
    want = pq.read_table(tmp_path / "data" / "a.parquet")
    found = pq.read_table(clean)
    assert found.equals(want.take(STAYING), check_metadata=True)
    group = pq.ParquetFile(clean).metadata.row_group(0)
    assert {group.column(n).compression for n in range(group.num_columns)} == {"GZIP"}
    assert load_dataset("parquet", data_files=str(clean), split="train", cache_dir=str(tmp_path / "cache")).features[
        "topic"
    ].names == ["a", "b", "c"]


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("framed", [True, False])
def test_arrow_stays_a_file_or_a_stream(make: Make, tmp_path: Path, codec: str | None, framed: bool) -> None:
    table = pa.Table.from_pylist([row | {"long": "z" * 500} for row in rows_of(COUNT)])
    table = table.append_column("kind", table["topic"].dictionary_encode())
    path = tmp_path / "data" / "a.arrow"
    path.parent.mkdir()
    open_, new = (pa.ipc.open_file, pa.ipc.new_file) if framed else (pa.ipc.open_stream, pa.ipc.new_stream)
    with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=7)
    clean = curate(make("data/a.arrow", INFLUENCE), tmp_path, "clean.arrow")
    assert open_(clean.read_bytes()).read_all().equals(table.take(STAYING))
    magic = {"lz4": b"\x04\x22\x4d\x18", "zstd": b"\x28\xb5\x2f\xfd"}
    for name, sign in magic.items():
        assert (sign in clean.read_bytes()) == (name == codec)
    assert clean.read_bytes().startswith(b"ARROW1") == framed


def test_several_files_become_a_folder(make: Make, tmp_path: Path) -> None:
    """With their names, formats and folders, also one of which nothing stays."""
    rows = rows_of(COUNT)
    parts = {"x/lang=en/a.jsonl.gz": rows[:9], "x/lang=de/b.csv": rows[9:23], "y/c.jsonl": rows[23:]}
    for name, some in parts.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "data" / name, some)
    order = ["x/lang=de/b.csv", "x/lang=en/a.jsonl.gz", "y/c.jsonl"]  # as a pattern sorts them
    numbers = [row["n"] for name in order for row in parts[name]]
    run = make("data/*/**", INFLUENCE[numbers])
    done = run.curate(
        to=str(tmp_path / "clean"), rejected=str(tmp_path / "gone") + "/", drop=len(GONE), because="harmful"
    )
    assert (done.to, done.kept) == (str(tmp_path / "clean"), len(STAYING))
    for name, some in parts.items():
        lines = lines_of(tmp_path / name, some)
        head = len(lines) - len(some)
        stay = [line for n, line in enumerate(lines) if n < head or some[n - head]["n"] in STAYING]
        assert unpacked(tmp_path / "clean" / name) == b"".join(stay)
    assert sorted(str(p.relative_to(tmp_path / "gone")) for p in (tmp_path / "gone").rglob("*.*")) == order
    config = RowsConfig(path=str(tmp_path / "gone" / "**"), columns={})
    gone = [row.fields["completion"] for row in read(plan_corpus(config, TASK, "train"))]
    assert sorted(gone) == sorted(f"answer, {n}" for n in GONE)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_scores_stand_beside_the_rows(make: Make, tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        row | {"id": f'é"{row["n"]},\n' if ".csv" not in name else "x"} for row in rows_of(COUNT)
    ]
    if ".csv" in name:  # whose columns the helper spells out
        rows = [{key: row[key] for key in ("prompt", "completion", "topic", "n")} for row in rows]
    ids = [f'hostile "id", {n}\u2028' for n in range(COUNT)]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / name, rows)
    influence = np.stack([INFLUENCE, -2 * INFLUENCE], axis=1)
    influence[6] = np.nan
    run = make(f"data/{name}", influence, ids=ids)
    path = curate(run, tmp_path, f"scored{name[1:]}", annotate=True)
    if ".json" in name:
        text = path.read_text()
        found = json.loads(text) if name == "a.json" else [json.loads(line) for line in text.split("\n")[:-1]]
    elif ".csv" in name:
        found = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    else:
        found = (pq.read_table(path) if "parquet" in name else pa.ipc.open_file(path).read_all()).to_pylist()
    clash = "id" in rows[0]
    names = ["datainf_id" if clash and column == "id" else column for column in ADDED]
    assert list(found[0]) == [*rows[0], *names]
    assert [row[names[1]] for row in found] == ids
    assert found[6]["status"] == "no_target_tokens"
    assert found[6]["influence"] in (None, "")
    assert [row["completion"] for row in found] == [row["completion"] for row in rows]
    for row, (one, other) in zip(found, influence, strict=True):
        if not np.isnan(one):
            numbers = [float(row[column]) for column in ADDED[5:]]
            assert numbers == pytest.approx([(one + other) / 2, min(one, other), max(one, other)], rel=1e-6)


def test_a_key_that_stands_in_a_late_row_only(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hundred rows make up the columns that are known of a JSON lines file."""
    monkeypatch.setattr("datainf_ray.curate.extra._BLOCK", 5)
    rows = rows_of(150)
    rows[140] |= {"weight": "mine", "note": '"datainf_weight"'}
    rows[141] |= {"note": "weight", "more": {"weight": 1}}
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", rows)
    run = make("data/a.jsonl", np.arange(150) - 75.0)
    path = curate(run, tmp_path, "w.jsonl", weights=True, because="harmful")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found[140]["weight"] == "mine"
    weights = np.array([row["datainf_weight"] for row in found])
    z = (np.arange(150) - 75.0) / np.sqrt(np.mean((np.arange(150) - 75.0) ** 2))
    np.testing.assert_allclose(weights, 2 / (1 + np.exp(z)), rtol=1e-5)
    assert [{key: row[key] for key in want} for row, want in zip(found, rows, strict=True)] == rows


def test_self_influence_stands_there_too(make: Make, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", rows_of(COUNT))
    run = make("data/a.jsonl", INFLUENCE, selves=-np.arange(COUNT).astype(float))
    path = curate(run, tmp_path, "scored.jsonl", annotate=True)
    assert [json.loads(line)["self_influence"] for line in path.read_text().splitlines()] == [-n for n in range(COUNT)]


def test_no_name_leads_out_of_the_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", rows_of(COUNT))
    corpus = plan_corpus(RowsConfig(path=str(tmp_path / "data")), TASK, "train")
    target = Target(str(tmp_path / "new"), "--to", {}, corpus)
    names = ("../../etc/a.jsonl", "/root/a.jsonl", "s3://b/../a.jsonl", "./a.jsonl")
    found = [target.named(replace(corpus.files[0], name=name)) for name in names]
    assert found == ["etc/a.jsonl", "root/a.jsonl", "b/a.jsonl", "a.jsonl"]


def test_other_tools_find_their_files(make: Make, tmp_path: Path) -> None:
    rows = rows_of(COUNT)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", rows)
    influence = np.arange(COUNT) - 10.0
    influence[4] = np.nan
    run = make("data/a.jsonl", influence)
    less = curate(run, tmp_path, "less", select=3, because="harmful", output_format="less")
    listed = (less / "sorted.csv").read_text().splitlines()
    assert listed[0] == "file name, index, score"
    assert [line.split(", ")[:2] for line in listed[1:]] == [["a", str(n)] for n in range(COUNT) if n != 4]
    assert [json.loads(line)["n"] for line in (less / "a.jsonl").read_text().splitlines()] == [0, 1, 2]
    factory = curate(run, tmp_path, "factory", drop=2, because="harmful", output_format="llamafactory")
    info = json.loads((factory / "dataset_info.json").read_text())
    assert info == {"a": {"file_name": "a.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}}
    assert len((factory / "a.jsonl").read_text().splitlines()) == COUNT - 2
    date = curate(run, tmp_path, "date", annotate=True, output_format="date-lm")
    scores = json.loads((date / "scores.json").read_text())
    assert (len(scores), np.argmax(scores), scores[4]) == (COUNT, COUNT - 1, min(scores))


@pytest.mark.parametrize("store", ["memory", pytest.param("s3", marks=pytest.mark.cluster)])
def test_rows_come_from_a_store_and_go_to_one(
    store: str, make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """And nothing that is there is written over."""
    root = "memory://curated" if store == "memory" else f"{request.getfixturevalue('bucket')}/curated"
    fs, path = fsspec.url_to_fs(root)
    rows = rows_of(COUNT)
    lines = lines_of(tmp_path / "a.jsonl", rows)
    for name, some in (("a.jsonl.gz", lines[:9]), ("b/c.jsonl.gz", lines[9:])):
        fs.pipe_file(f"{path}/data/{name}", gzip.compress(b"".join(some)))
    run = make(f"{root}/data/**", INFLUENCE)
    run.curate(to=f"{root}/clean", rejected=f"{root}/gone/", drop=len(GONE), because="harmful")
    found = [gzip.decompress(fs.cat_file(f"{path}/clean/{name}")) for name in ("a.jsonl.gz", "b/c.jsonl.gz")]
    assert b"".join(found) == b"".join(lines[n] for n in STAYING)
    assert len(fs.find(f"{path}/gone")) == 2
    with pytest.raises(datainf_ray.RequestError, match="is there already"):
        run.curate(to=f"{root}/clean", drop=1, because="harmful")
    with pytest.raises(datainf_ray.RequestError, match=r"lies inside train\.path|would be taken for rows"):
        run.curate(to=f"{root}/data/new", drop=1, because="harmful")
