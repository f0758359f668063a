from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.errors import DamagedError
from datainf_ray.runs import parts, schemas
from datainf_ray.runs.checksums import table_file
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.parts import chunk_name, consolidate, part_name, plan_parts, read_rows, row_bytes
from datainf_ray.runs.schemas import ACROSS, across, examples_schema, matrix, read_parquet, vectors
from tests.runs_of import write_table

MB = 2**20


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> int:
    """Row groups of 30 rows of two queries and two blocks."""
    monkeypatch.setattr(schemas, "_GROUP_BYTES", 30 * (64 + 4 * 2 * 3))
    return 30


def _chunk(number: int, first: int, rows: int, queries: int = 2, blocks: int = 2) -> pa.Table:
    """A chunk's rows as a worker commits them; every third has no score."""
    draw = np.random.default_rng(number)
    missing = np.arange(first, first + rows) % 3 == 2
    influence = draw.normal(size=(rows, queries))
    schema = examples_schema(queries, blocks=blocks).with_metadata({"datainf.moments": json.dumps({"a": [number]})})
    columns = {
        "row": np.arange(first, first + rows),
        "id": [f"a.jsonl#{row}" for row in range(first, first + rows)],
        "tokens": draw.integers(1, 99, rows),
        "tokens_cut": draw.integers(0, 2, rows),
        "loss": pa.array(draw.uniform(0.5, 3, rows), pa.float32(), mask=missing),
        "sqnorm": pa.array(draw.uniform(1, 9, rows), pa.float32(), mask=missing),
        "status": np.where(missing, "nonfinite", "ok"),
        "detail": pa.array(np.where(missing, "some reason", None), pa.string()),
        "influence": vectors(influence, missing),
        "block_influence": vectors(draw.normal(size=(rows, queries * blocks)), missing),
    }
    columns |= dict(zip(ACROSS, across(influence, missing), strict=True))
    columns["predicted"] = pa.array(np.where(missing, None, "positive"), pa.string())
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _commit(directory: RunDirectory, sizes: list[int]) -> pa.Table:
    tables, first = [], 0
    for number, rows in enumerate(sizes):
        tables.append(_chunk(number, first, rows))
        name = chunk_name(number)
        directory.commit(name, table_file(tables[-1], OWNER, name))
        first += rows
    return pa.concat_tables([table.replace_schema_metadata() for table in tables])


OWNER = "f00"
SIZES = [20, 7, 0, 41, 20, 1, 95, 20]


def test_a_part_holds_its_chunks_rows_and_nothing_of_the_chunks_own(directory: RunDirectory, small_groups: int) -> None:
    whole = _commit(directory, SIZES)
    consolidate(directory, 0, range(0, 3), OWNER)
    consolidate(directory, 1, range(3, 8), OWNER)
    assert directory.list("examples/") == [part_name(0), part_name(1)]
    back = pa.concat_tables([read_parquet(directory.read(part_name(0))), read_parquet(directory.read(part_name(1)))])
    assert back.schema.equals(whole.schema, check_metadata=False)
    for name in (name for name in whole.schema.names if name not in ("influence", "block_influence")):
        assert back[name].to_pylist() == whole[name].to_pylist()
    for name in ("influence", "block_influence"):
        assert back[name].null_count == 68
        np.testing.assert_array_equal(matrix(back[name]), matrix(whole[name]))
    file = pq.ParquetFile(pa.BufferReader(directory.read(part_name(1))))
    assert b"datainf.moments" not in (file.schema_arrow.metadata or {})
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [30] * 5 + [27]
    frame = pd.read_parquet(directory.path(part_name(1))) if directory.local else file.read().to_pandas()
    assert frame["influence"][0].tolist() == pytest.approx(whole["influence"][27].as_py(), rel=1e-7, abs=0)


def test_chunks_of_an_earlier_version_and_of_this_one_make_one_part(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    later = ["tokens_cut", "detail", *ACROSS, "predicted"]
    chunks = [_chunk(0, 0, 20).drop_columns(later), _chunk(1, 20, 20)]
    for number, table in enumerate(chunks):
        directory.commit(chunk_name(number), table_file(table, OWNER, chunk_name(number)))
    consolidate(directory, 0, range(2), OWNER)
    schema = examples_schema(2, blocks=2)
    back = pa.concat_tables(read_rows(directory, part_name(0), schema))
    assert back.schema.equals(schema)
    assert back["row"].to_pylist() == list(range(40))
    for name in later:
        assert back[name].to_pylist() == [None] * 20 + chunks[1][name].to_pylist()


def test_a_part_is_the_same_bytes_every_time(directory: RunDirectory, small_groups: int) -> None:
    _commit(directory, SIZES)
    consolidate(directory, 0, range(0, 8), OWNER)
    first = directory.read(part_name(0))
    consolidate(directory, 0, range(0, 8), OWNER)
    assert directory.read(part_name(0)) == first


def test_a_part_whose_chunks_are_not_all_there_is_not_written(directory: RunDirectory, small_groups: int) -> None:
    _commit(directory, SIZES)
    with pytest.raises(DamagedError, match=r"chunk-000008\.parquet: is gone"):
        consolidate(directory, 0, range(0, 9), OWNER)
    assert directory.list("examples/") == []
    directory.write(part_name(0), b"earlier")
    with pytest.raises(DamagedError, match=r"chunk-000008\.parquet: is gone"):
        consolidate(directory, 0, range(0, 9), OWNER)
    assert directory.read(part_name(0)) == b"earlier"
    assert [name for name in directory.fs.find(directory.root) if "tmp" in os.path.basename(name)] == []


def test_a_part_of_which_no_row_is_there_can_be_read(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    _commit(directory, [0, 0])
    consolidate(directory, 0, range(0, 2), OWNER)
    assert read_parquet(directory.read(part_name(0))).num_rows == 0
    assert list(read_rows(directory, part_name(0), examples_schema(7), ["row"], share=0.5)) == []


def test_memory_does_not_grow_with_the_number_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_GROUP_BYTES", MB // 4)
    monkeypatch.setattr(parts, "_AHEAD_BYTES", MB // 4)
    directory = RunDirectory(str(tmp_path))
    _commit(directory, [2000] * 60)  # 10 MB
    usual, arrows, pythons = pa.default_memory_pool(), [], []
    for chunks in (10, 60):
        pool = pa.proxy_memory_pool(usual)  # counts what Arrow takes from here on
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            consolidate(directory, 0, range(chunks), OWNER)
            pythons.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(usual)
        arrows.append(pool.max_memory())
    for highest in (arrows, pythons):
        assert MB // 8 < highest[1] < 2 * MB
        assert highest[1] == pytest.approx(highest[0], rel=0.2, abs=0)


def test_parts_are_consecutive_of_every_chunk_once_and_of_a_sensible_size() -> None:
    draw = np.random.default_rng(0)
    for width in (row_bytes(1, scores=False), row_bytes(3), row_bytes(100), row_bytes(100, blocks=96)):
        sizes = draw.integers(1, 5000, 20_000).tolist()
        plan = plan_parts(sizes, width)
        assert [number for chunks in plan for number in chunks] == list(range(20_000))
        planned = [sum(sizes[number] for number in chunks) * width / MB for chunks in plan]
        one = 5000 * width / MB  # a chunk belongs to one part
        assert min(planned) > 128 - one
        assert max(planned) < 256 + one
        assert plan == plan_parts(sizes, width)


def test_a_small_run_has_one_part_and_a_huge_chunk_its_own() -> None:
    assert plan_parts([100] * 5, 424) == [range(0, 5)]
    assert plan_parts([0, 0], 424) == [range(0, 2)]
    assert plan_parts([], 424) == []
    million = row_bytes(10**6)  # queries
    assert plan_parts([1000, 1000, 0, 1000], million) == [range(0, 1), range(1, 2), range(2, 4)]


def test_what_a_row_takes_is_what_files_have(tmp_path: Path) -> None:
    """The plan is of bytes in a file, so that parts come out between 64 and 512 MB."""
    directory = RunDirectory(str(tmp_path))
    draw, rows = np.random.default_rng(0), 100_000
    influence = draw.normal(size=(rows, 20)) * 1e-5
    base = {
        "row": np.arange(rows),
        "tokens": draw.integers(1, 2000, rows),
        "tokens_cut": np.zeros(rows, np.int32),
        "loss": draw.uniform(0.5, 3, rows),
        "sqnorm": draw.lognormal(size=rows),
        "status": ["ok"] * rows,
        "detail": pa.nulls(rows, pa.string()),
        "influence": vectors(influence),
        **dict(zip(ACROSS, across(influence, np.zeros(rows, bool)), strict=True)),
        "predicted": pa.nulls(rows, pa.string()),
    }
    for ids in (
        [f"s3://b/sft/train-00001.parquet#{row}" for row in range(rows)],
        [os.urandom(16).hex() for _ in base["row"]],
    ):
        for scores in (False, True):
            schema = examples_schema(20, scores=scores)
            write_table(directory, "x", pa.table({n: {**base, "id": ids}[n] for n in schema.names}, schema=schema))
            ratio = len(directory.read("x")) / rows / row_bytes(20, scores)
            assert 64 / 128 < ratio < 512 / 256


def test_rows_are_read_in_portions_or_a_share_of_them_from_all_over(directory: RunDirectory, small_groups: int) -> None:
    whole = _commit(directory, [240, 60])
    consolidate(directory, 0, range(0, 2), OWNER)
    portions = list(read_rows(directory, part_name(0), whole.schema, ["row", "influence"]))
    assert [len(portion) for portion in portions] == [30] * 10
    assert all(portion.schema.metadata is None for portion in portions)
    np.testing.assert_array_equal(matrix(pa.concat_tables(portions)["influence"]), matrix(whole["influence"]))
    for share, firsts in ((0.2, [0, 150]), (0.01, [0]), (0.29, [0, 90, 180]), (1.7, range(0, 300, 30))):
        portions = list(read_rows(directory, part_name(0), whole.schema, ["row"], share))
        assert pa.concat_tables(portions)["row"].to_pylist() == [
            r for first in firsts for r in range(first, first + 30)
        ]


def test_names_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path))
    for number in (10**6, 999_999, 3):
        directory.write(chunk_name(number), b"")
    directory.write(chunk_name(4) + ".done", b"")
    assert parts.names_of(directory, parts.CHUNKS) == [chunk_name(number) for number in (3, 999_999, 10**6)]
