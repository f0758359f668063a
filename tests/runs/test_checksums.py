"""Files with a checksum: every flipped bit, every cut and every other file in their place is noticed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from datainf_ray.common.errors import DamagedError
from datainf_ray.runs.checksums import (
    BLANK,
    KEY,
    read_checked_table,
    read_document,
    read_tensors,
    table_file,
    tensors_file,
    write_document,
    wrong,
)
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.parts import chunk_name, consolidate, part_name, read_rows
from datainf_ray.runs.schemas import across, examples_schema, vectors

OWNER = "f00"
#: Texts of users that look like the place of a checksum.
HOSTILE = [f"{KEY}  {BLANK}", f'"{KEY}":"{BLANK}"', BLANK, "PAR1"]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def table() -> pa.Table:
    return pa.table({"id": HOSTILE, "x": [1.0, None, 3.0, 4.0]}).replace_schema_metadata({"note": HOSTILE[0]})


def made(directory: RunDirectory) -> dict[str, bytes]:
    """A file of each kind."""
    directory.write("a.parquet", table_file(table(), OWNER, "a.parquet"))
    directory.write("a.safetensors", tensors_file({"x": np.arange(6.0), KEY: np.zeros(2)}, OWNER, "a.safetensors"))
    write_document(directory, "a.json", {"of": HOSTILE}, OWNER)
    return {name: directory.read(name) for name in directory.list()}


def test_what_is_written_is_read_and_is_plain(directory: RunDirectory) -> None:
    files = made(directory)
    assert [wrong(data, OWNER, name) for name, data in files.items()] == [None] * 3
    assert read_checked_table(directory, "a.parquet", OWNER)["id"].to_pylist() == HOSTILE
    assert pq.read_table(io.BytesIO(files["a.parquet"]))["x"].to_pylist() == [1.0, None, 3.0, 4.0]
    assert read_tensors(directory, "a.safetensors", OWNER)["x"].tolist() == list(range(6))
    assert set(safetensors.numpy.load(files["a.safetensors"])) == {"x", KEY}
    assert read_document(directory, "a.json", OWNER) == {"of": HOSTILE}
    assert made(directory) == files


def test_every_flipped_bit_is_noticed(directory: RunDirectory) -> None:
    for name, data in made(directory).items():
        for place in range(len(data)):
            for bit in range(8):
                harmed = bytearray(data)
                harmed[place] ^= 1 << bit
                assert wrong(bytes(harmed), OWNER, name) is not None, (name, place, bit)


def test_cuts_and_other_files_are_noticed(directory: RunDirectory) -> None:
    files = made(directory)
    for name, data in files.items():
        assert all(wrong(data[:length], OWNER, name) is not None for length in range(len(data)))
        assert wrong(data + b"\n", OWNER, name) is not None
        assert wrong(data, "ba2", name) is not None
        assert wrong(data, OWNER, f"b/{name}") is not None
    directory.write("a.json", b"{}")
    with pytest.raises(
        DamagedError, match=r"a\.json: has no checksum: it is damaged, or no file of this run; remove it"
    ):
        read_document(directory, "a.json", OWNER)
    with pytest.raises(FileNotFoundError):
        read_document(directory, "b.json", OWNER)


@pytest.mark.slow
def test_no_flipped_bit_of_a_part_changes_what_is_read_of_it(directory: RunDirectory) -> None:
    """Of a part only some columns are read, so that its pages and its footer are checked, not all of its bytes."""
    rows = 30
    missing = np.arange(rows) % 7 == 3
    draw = np.random.default_rng(0)
    influence = draw.normal(size=(rows, 2))
    columns = [
        np.arange(rows), [f"a#{k}" for k in range(rows)], np.full(rows, 3, np.int32), np.zeros(rows, np.int32),
        pa.array(draw.random(rows), pa.float32(), mask=missing),
        pa.array(draw.random(rows), pa.float32(), mask=missing),
        np.where(missing, "nonfinite", "ok"), pa.array(np.where(missing, "why", None), pa.string()),
        vectors(influence, missing), *across(influence, missing), pa.nulls(rows, pa.string()),
    ]  # fmt: skip
    schema = examples_schema(2)
    chunk = pa.table([pa.array(c) if isinstance(c, np.ndarray | list) else c for c in columns], schema=schema)
    directory.write(chunk_name(0), table_file(chunk, OWNER, chunk_name(0)))
    name, known = part_name(0), consolidate(directory, 0, range(1), OWNER)
    data, asked = directory.read(name), ["row", "influence"]
    want = pa.concat_tables(read_rows(directory, name, schema, asked, known=known))
    noticed = 0
    for place in range(len(data)):
        harmed = bytearray(data)
        harmed[place] ^= 1 << place % 8
        Path(directory.path(name)).write_bytes(harmed)
        try:
            assert pa.concat_tables(read_rows(directory, name, schema, asked, known=known)).equals(want), place
        except DamagedError:
            noticed += 1
    assert noticed > len(data) / 2
