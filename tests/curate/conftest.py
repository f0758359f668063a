"""Finished runs with known influences over corpora in every format."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datainf_ray
from tests.evaluation.conftest import sign
from tests.runs.conftest import make_run

Lines = Sequence[dict[str, Any]]
Make = Callable[..., datainf_ray.Run]


def rows_of(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n} é", "completion": f"answer, {n}", "topic": "abc"[n % 3], "n": n}
        for n in range(first, first + count)
    ]


def packed(path: Path, content: bytes) -> None:
    """Write a file, compressed as its name says."""
    kinds: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kinds.get(path.suffix, bytes)(content))


def unpacked(path: Path) -> bytes:
    kinds: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress, ".zst": _unzstd,
    }  # fmt: skip
    return kinds.get(path.suffix, bytes)(path.read_bytes())


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def _unzstd(content: bytes) -> bytes:
    return pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()


def write(path: Path, rows: Lines) -> None:
    """Write rows in the format that a file's name says."""
    name = path.name
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=7, compression="gzip")
    elif ".arrow" in name:
        table = pa.Table.from_pylist(list(rows))
        with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table, max_chunksize=7)
    elif ".json" in name and ".jsonl" not in name:
        packed(path, json.dumps(list(rows), indent=1, ensure_ascii=False).encode())
    else:
        packed(path, b"".join(lines_of(path, rows)))


def lines_of(path: Path, rows: Lines) -> list[bytes]:
    """The lines of a JSON lines or CSV file, the CSV header first; spaced and quoted as no library would."""
    if ".jsonl" in path.name:
        spaced = [(" , ", " :  "), (",", ":"), (", ", ": ")]
        return [
            json.dumps(row, separators=spaced[n % 3], ensure_ascii=n % 2 == 0).encode() + (b"\r\n", b"\n")[n % 2]
            for n, row in enumerate(rows)
        ]
    header = ",".join(rows[0]).encode() + b"\r\n"
    return [
        header,
        *(f'"{r["prompt"]}\nand ""more""","{r["completion"]}",{r["topic"]},{r["n"]}\r\n'.encode() for r in rows),
    ]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run over the files at `path` (a name in the test's folder): `influence` is rows × queries, NaN has no score."""

    def made(path: str | list[str], influence: Any, name: str = "run", **more: Any) -> datainf_ray.Run:
        values = np.array(influence, np.float32)
        values = values[:, None] if values.ndim == 1 else values
        missing = np.isnan(values[:, 0])
        queries = tmp_path / "asked" / "queries.jsonl"
        queries.parent.mkdir(exist_ok=True)
        queries.write_text(
            "".join(f'{{"prompt": "q{n}", "completion": "a", "image": "a"}}\n' for n in range(values.shape[1]))
        )
        paths = [path] if isinstance(path, str) else path
        made = make_run(
            str(tmp_path / name), len(values), values.shape[1], influence=values, missing=missing, chunk=16,
            path=[one if "://" in one else str(tmp_path / one) for one in paths], queries_path=str(queries), **more,
        )  # fmt: skip
        sign(made)
        return datainf_ray.open_run(made.run.url)

    return made
