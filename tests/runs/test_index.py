"""The gradient index: what goes in comes out, to the precision that was asked for; plain safetensors; plain errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from datainf_ray.common.errors import RequestError
from datainf_ray.influence.block import Block
from datainf_ray.runs.checksums import table_file
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import (
    DType,
    Index,
    Part,
    begin_index,
    facts_schema,
    open_index,
    parts_there,
    read_facts,
    read_part,
    write_index,
    write_part,
)
from datainf_ray.runs.schemas import LATER
from tests.runs_of import write_table

A, B = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"
BLOCKS = (Block(A, "lora_A", (2, 20)), Block(B, "lora_B", (7, 1)))
UNIT = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}
DTYPES: list[DType] = ["float32", "bfloat16", "float16"]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "run" / "index"), key="index")


OWNER = "f00"
PORTIONS = {"chunk_rows": 9, "batch_tokens": 64}


def made(rows: int = 9, scale: float = 1.0, seed: int = 0) -> Part:
    """Random gradients whose rows differ by orders of magnitude; row 3 has none."""
    draw = np.random.default_rng(seed)
    wide = 10.0 ** draw.uniform(-3, 3, (rows, 1))
    gradients = {b.name: (scale * wide * draw.standard_normal((rows, b.size))).astype(np.float32) for b in BLOCKS}
    for g in gradients.values():
        g[3] = 0
    sqnorms = np.stack([np.square(g.astype(np.float64)).sum(1) for g in gradients.values()], 1) * 1.5
    fine = np.arange(rows) != 3
    columns = [
        pa.array(np.arange(rows) + 100),
        pa.array([f"a#{k}" for k in range(rows)]),
        pa.array(np.full(rows, 5, np.int32)),
        pa.array(np.arange(rows) % 3, pa.int32()),
        pa.array(np.linspace(1, 2, rows, dtype=np.float32), mask=~fine),
        pa.array(np.minimum(sqnorms.sum(1), 1e38), pa.float32(), mask=~fine),
        pa.array(np.where(fine, "ok", "nonfinite")),
        pa.array(np.where(fine, None, "why"), pa.string()),
        pa.array(np.where(fine, "positive", None), pa.string()),
        pa.array([f"row {k}" for k in range(rows)]),
        pa.array([f'[{{"role": "text", "text": "row {k}"}}]' for k in range(rows)], pa.large_string()),
        pa.array([b"\xff\xd8\xff" if k % 2 else None for k in range(rows)], pa.large_binary()),
    ]
    return Part(gradients, sqnorms, pa.Table.from_arrays(columns, schema=facts_schema()))


def described(rows: int = 18, **changes: object) -> Index:
    values = {
        "fingerprint": "f00", "blocks": BLOCKS, "stored": (40, 7), "dtype": "float16", "projection": 64, "seed": 3,
        "rows": rows, "chunks": 2, "bytes": 1234, "damping": {b.name: 1e-9 for b in BLOCKS}, "sign": "+ is harmful",
        "model": {"base": "org/base"},
    }  # fmt: skip
    return Index(**(values | changes))  # type: ignore[arg-type]


def assert_close(got: np.ndarray, want: np.ndarray, dtype: DType) -> None:
    """Within the documented bound, value by value."""
    error, values = np.abs(got.astype(np.float64) - want), np.abs(want.astype(np.float64))
    assert (error <= np.maximum(UNIT[dtype] * values, 2.0**-39 * values.max(1, keepdims=True))).all()


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-27, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(directory: RunDirectory, dtype: DType, scale: float) -> None:
    part = made(scale=scale)
    size = write_part(directory, 7, *part, dtype, OWNER)
    assert size == len(directory.read("part-000007.safetensors"))
    got = read_part(directory, 7, OWNER)
    assert list(got.gradients) == [b.name for b in BLOCKS]
    for name, g in part.gradients.items():
        assert got.gradients[name].dtype == np.float32
        assert_close(got.gradients[name], g, dtype)
        assert not got.gradients[name][3].any()
    np.testing.assert_array_equal(got.sqnorms, part.sqnorms, strict=True)
    assert all(a.flags.writeable for a in (got.sqnorms, *got.gradients.values()))  # torch.from_numpy warns else
    assert got.facts.equals(part.facts)
    assert read_facts(directory, 7, OWNER).equals(part.facts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_powers_of_two_come_back_exactly_from_any_scale(directory: RunDirectory, dtype: DType) -> None:
    """The scale itself costs no precision, from the smallest normal float32 to the largest power of two."""
    part = made(254)
    for g in part.gradients.values():
        g[:] = np.ldexp(np.float32(1), np.arange(-126, 128, dtype=np.int32))[:, None]
        g[:, 0] *= -1
    write_part(directory, 0, *part, dtype, OWNER)
    for name, g in read_part(directory, 0, OWNER).gradients.items():
        np.testing.assert_array_equal(g, part.gradients[name])


def test_half_precision_rounds_to_nearest_as_torch_does(directory: RunDirectory) -> None:
    part = made(500)
    for g in part.gradients.values():
        g[:, 0] = 2.0**14 * 1.5  # of every row, so that the scale is one
        g[:, 1:] = np.clip(g[:, 1:], -(2.0**14), 2.0**14)
        g[3, 1:] = (1 + 2.0**-8) * np.array([1, 3, -1, -3, 5, 7])[np.arange(g.shape[1] - 1) % 6]  # ties, in bfloat16
    for number, dtype in enumerate((torch.bfloat16, torch.float16)):
        write_part(directory, number, *part, str(dtype)[6:], OWNER)  # type: ignore[arg-type]
        for name, g in read_part(directory, number, OWNER).gradients.items():
            np.testing.assert_array_equal(g, torch.from_numpy(part.gradients[name]).to(dtype).float().numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_is_plain_safetensors(directory: RunDirectory, dtype: DType) -> None:
    part = made(scale=1e-8)
    write_part(directory, 0, *part, dtype, OWNER)
    data = directory.read("part-000000.safetensors")
    assert int.from_bytes(data[:8], "little") % 8 == 0  # so that tensors are aligned where a reader maps the file
    tensors = safetensors.torch.load(data)
    assert set(tensors) == {"sqnorms", "scales", *part.gradients}
    assert torch.equal(tensors["sqnorms"], torch.from_numpy(part.sqnorms))
    for k, (name, g) in enumerate(part.gradients.items()):
        assert tensors[name].dtype == getattr(torch, dtype)
        assert_close((tensors[name].float() * tensors["scales"][:, k : k + 1]).numpy(), g, dtype)


def _unsigned(data: bytes) -> bytes:
    """A part without its checksum, which the part's own name is in."""
    return re.sub(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", b"", data)


def test_the_same_rows_give_the_same_bytes_and_the_first_part_stays(directory: RunDirectory) -> None:
    first, other = made(seed=1), made(seed=2)
    write_part(directory, 0, *first, "float16", OWNER)
    before = {name: directory.read(name) for name in directory.list()}
    write_part(directory, 0, *first, "float16", OWNER)
    write_part(directory, 1, *first, "float16", OWNER)
    write_part(directory, 0, *other, "float16", OWNER)
    assert {name: directory.read(name) for name in before} == before
    with pytest.raises(ValueError, match=r"part-000000\.safetensors holds other rows than chunk 0"):
        write_part(directory, 0, *made(rows=8), "float16", OWNER)  # of a plan with smaller chunks
    assert {name: directory.read(name) for name in before} == before
    for ending in ("safetensors", "parquet"):
        first_part, second_part = (_unsigned(directory.read(f"part-00000{n}.{ending}")) for n in (0, 1))
        assert first_part == second_part


def test_facts_without_a_part_are_no_part_and_are_replaced(directory: RunDirectory) -> None:
    write_table(directory, "part-000002.parquet", made(rows=4).facts)
    assert parts_there(directory) == set()
    write_part(directory, 2, *made(), "float32", OWNER)
    write_part(directory, 1_234_567, *made(), "float32", OWNER)
    assert parts_there(directory) == {2, 1_234_567}
    assert read_part(directory, 2, OWNER).facts.equals(made().facts)


def test_what_does_not_belong_together_is_refused(directory: RunDirectory) -> None:
    gradients, sqnorms, facts = made()
    with pytest.raises(ValueError, match="9 rows of facts"):
        write_part(directory, 0, {n: g[1:] for n, g in gradients.items()}, sqnorms, facts, "float32", OWNER)
    with pytest.raises(ValueError, match="9 rows of facts"):
        write_part(directory, 0, gradients, sqnorms[:, :1], facts, "float32", OWNER)
    for value in (np.nan, np.inf, -np.inf):
        gradients[B][2, 4] = value
        with pytest.raises(ValueError, match=r"lora_B\.weight: gradients that are not finite"):
            write_part(directory, 0, gradients, sqnorms, facts, "float32", OWNER)
    assert directory.list() == []


def test_an_index_is_what_was_described(directory: RunDirectory) -> None:
    begin_index(directory, "f00", PORTIONS)
    for number in range(2):
        write_part(directory, number, *made(), "float16", OWNER)
    begin_index(directory, "f00", PORTIONS)  # the run is taken up again
    index = described()
    write_index(directory, index)
    begin_index(directory, "f00", PORTIONS)
    assert open_index(directory, 9) == index
    document = directory.read_json("index.json")
    assert document["blocks"][0] == {
        "name": A, "kind": "lora_A", "shape": [2, 20], "size": 40, "stored": 40,
    }  # fmt: skip
    write_index(directory, described(damping=None, projection=None))
    assert open_index(directory, 9) == described(damping=None, projection=None)


def test_an_index_that_cannot_be_used_says_why(directory: RunDirectory, tmp_path: Path) -> None:
    where = f"index: {tmp_path}/run/index"
    with pytest.raises(RequestError) as none:
        open_index(directory, 9)
    assert str(none.value) == f"{where}: holds no gradient index; one comes of a run with index: true"
    begin_index(directory, "f00", PORTIONS)
    write_part(directory, 0, *made(), "float16", OWNER)
    with pytest.raises(RequestError) as unfinished:
        open_index(directory, 9)
    assert str(unfinished.value) == f"{where}: the index is not complete, 1 parts so far; finish its run first"
    with pytest.raises(RequestError, match="holds the gradient index of another run; remove it, or choose another"):
        begin_index(directory, "ba2", PORTIONS)
    with pytest.raises(
        RequestError, match="parts made with chunk_rows 9, batch_tokens 64, and this run has chunk_rows 8"
    ):
        begin_index(directory, "f00", {**PORTIONS, "chunk_rows": 8})
    directory.write("index.json", json.dumps({"format": 2, "complete": True}).encode())
    with pytest.raises(RequestError, match=r"index\.json has format 2; this version reads format 1"):
        open_index(directory, 9)
    for content, why in ((b"{", "index.json is not JSON"), (b"[]", "has format None")):
        directory.write("index.json", content)
        with pytest.raises(RequestError, match=why):
            open_index(directory, 9)


@pytest.mark.cluster
def test_an_index_in_a_bucket(bucket: str) -> None:
    directory = RunDirectory(f"{bucket}/index", key="index")
    begin_index(directory, "f00", PORTIONS)
    parts = [made(seed=0), made(seed=1)]
    for number, part in enumerate(parts):
        write_part(directory, number, *part, "bfloat16", OWNER)
    write_index(directory, described())
    assert open_index(RunDirectory(f"{bucket}/index"), 9).rows == 18
    assert parts_there(directory) == {0, 1}
    for number, part in enumerate(parts):
        for name, g in read_part(directory, number, OWNER).gradients.items():
            assert_close(g, part.gradients[name], "bfloat16")
    with pytest.raises(RequestError, match="holds no gradient index"):
        open_index(RunDirectory(f"{bucket}/elsewhere"), 9)


def test_facts_of_an_earlier_version_have_nulls_for_what_it_did_not_write(directory: RunDirectory) -> None:
    part, later = made(), [name for name in facts_schema().names if name in LATER]
    assert {"tokens_cut", "detail", "text", "predicted", "picture"} <= {*later}
    write_part(directory, 0, *part, "float32", OWNER)
    name = "part-000000.parquet"
    directory.write(name, table_file(part.facts.drop_columns(later), OWNER, name))
    facts = read_part(directory, 0, OWNER).facts
    assert facts.schema.equals(facts_schema())
    assert [facts[column].null_count for column in later] == [len(facts)] * len(later)
    assert facts.drop_columns(later).equals(part.facts.drop_columns(later))
