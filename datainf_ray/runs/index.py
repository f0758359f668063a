"""The gradient index: every row's gradients on disk, so that new queries need no backward pass over the corpus.

    index.json                what the index holds; complete once the last part is there
    part-000000.safetensors   one chunk: a matrix (rows × d'_l) for every block, named as the block; `sqnorms`, `scales`
    part-000000.parquet       the same rows' facts: row, id, tokens, loss, sqnorm, status, preview

Any reader of safetensors reads the parts. The gradients of block k, in the order of index.json, are the matrix as
float32 times the column `scales[:, k]`. A row without a gradient (`status` is not "ok") has zeros.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.influence.block import Block
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import examples_schema

DType = Literal["float32", "bfloat16", "float16"]

INDEX = "index.json"
_FORMAT = 1
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}  # safetensors' names
_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Index:
    """What an index holds, and what a query needs to know of the run that made it.

    `stored` has d'_l for every block, and `projection` and `seed` say how the d_l became so few (None: they did not);
    `damping` is λ_l by block, None where the run's method had none. `bytes` counts the parts.
    """

    fingerprint: str
    blocks: tuple[Block, ...]
    stored: tuple[int, ...]
    dtype: DType
    projection: int | None
    seed: int
    rows: int
    chunks: int
    bytes: int
    damping: dict[str, float] | None
    sign: str
    model: dict[str, Any]


class Part(NamedTuple):
    """One chunk's rows, read back."""

    gradients: dict[str, np.ndarray]  # rows × d'_l float32 a block
    sqnorms: np.ndarray  # rows × blocks float64, of the gradients as they were before any projection
    facts: pa.Table


def facts_schema() -> pa.Schema:
    """The schema of part-*.parquet; `loss` and `sqnorm` are null where `status` is not "ok"."""
    return examples_schema(0, scores=False).append(pa.field("preview", pa.string()))


def begin_index(directory: RunDirectory, fingerprint: str, portions: dict[str, int]) -> None:
    """Claim the directory for a run before its first part; `RequestError` if it holds another run's index.

    `portions` are the sizes that the run chose, which its parts follow.
    """
    claim = {"format": _FORMAT, "complete": False, "fingerprint": fingerprint, "portions": portions}
    if directory.commit(INDEX, _json(claim)):
        return
    there = _document(directory)
    key, url = directory.key, directory.url
    if there.get("fingerprint") != fingerprint:
        raise RequestError(key, url, "holds the gradient index of another run", "remove it, or choose another place")
    if there.get("portions", portions) != portions:
        ours, theirs = (", ".join(f"{k} {v}" for k, v in p.items()) for p in (portions, there["portions"]))
        raise RequestError(key, url, f"holds parts made with {theirs}, and this run has {ours}", "remove it")


def write_index(directory: RunDirectory, index: Index) -> None:
    """Write index.json, when all parts are there: the index is complete then."""
    fields = {name: value for name, value in vars(index).items() if name not in ("blocks", "stored")}
    blocks = [
        {**asdict(block), "size": block.size, "stored": stored}
        for block, stored in zip(index.blocks, index.stored, strict=True)
    ]
    directory.write(INDEX, _json({"format": _FORMAT, "complete": True, **fields, "blocks": blocks}))


def open_index(directory: RunDirectory) -> Index:
    """What the index in a directory holds; `RequestError` where there is none, or one that cannot be used."""
    document = _document(directory)
    if not document["complete"]:
        there = len(parts_there(directory))
        problem = f"the index is not complete, {there} parts so far"
        raise RequestError(directory.key, directory.url, problem, "finish its run first")
    blocks = document["blocks"]
    fields = {name: document[name] for name in Index.__dataclass_fields__ if name not in ("blocks", "stored")}
    return Index(
        blocks=tuple(Block(b["name"], b["kind"], tuple(b["shape"])) for b in blocks),
        stored=tuple(b["stored"] for b in blocks),
        **fields,
    )


def write_part(
    directory: RunDirectory,
    number: int,
    gradients: Mapping[str, np.ndarray],
    sqnorms: np.ndarray,
    facts: pa.Table,
    dtype: DType,
) -> int:
    """Commit one chunk's rows and return the bytes written. Equal rows give equal bytes; who comes second changes none.

    `gradients` are rows × d'_l float32 a block, in the index's order; `sqnorms` is rows × blocks; `facts` has
    `facts_schema()`. Half precision is of each row's gradient in a block over a power of two that brings its largest
    value to 2¹⁴ or more, below 2¹⁵. So nothing overflows, and down to gradients of 1e-33 a value's error is at most
    2⁻¹¹ (bfloat16: 2⁻⁸) of itself or 2⁻³⁹ of the row's largest value. Raises `ValueError` for a gradient that is not
    finite, and where the part is there with other rows: it was written under another plan.
    """
    rows = facts.num_rows
    if any(g.ndim != 2 or len(g) != rows for g in gradients.values()) or sqnorms.shape != (rows, len(gradients)):
        raise ValueError(f"part {number}: {rows} rows of facts; gradients and sqnorms want as many, and all blocks")
    shifts = np.stack([_shifts(name, g, dtype) for name, g in gradients.items()], 1)
    code = _CODES[dtype]
    layout = {"sqnorms": ("F64", sqnorms.shape), "scales": ("F32", shifts.shape)}  # wide values first: all are aligned
    layout |= {name: (code, g.shape) for name, g in gradients.items()}
    # Written here: numpy has no bfloat16, and what safetensors takes as raw bytes differs between its versions.
    file = io.BytesIO()
    file.write(_header(layout))
    file.write(np.ascontiguousarray(sqnorms, _STORED["F64"]).data)
    file.write(np.ldexp(np.float32(1), shifts).astype(_STORED["F32"]).data)
    for shift, g in zip(shifts.T, gradients.values(), strict=True):
        file.write(_narrow(g, shift, code).data)
    data = file.getvalue()
    marker, table = _names(number)
    if not directory.commit_table(table, facts):
        if not directory.exists(marker):
            directory.write_table(table, facts)  # an attempt that was cut off here may have seen other facts
        elif not read_facts(directory, number)["row"].equals(facts["row"]):
            raise ValueError(f"{directory.path(marker)} holds other rows than chunk {number}")
    directory.commit(marker, data)
    return len(data)


def read_part(directory: RunDirectory, number: int) -> Part:
    """One chunk's rows; `FileNotFoundError` if the part is not there."""
    tensors = dict(_tensors(directory.read(_names(number)[0])))
    sqnorms, scales = tensors.pop("sqnorms"), tensors.pop("scales")
    gradients = {name: g * scale[:, None] for (name, g), scale in zip(tensors.items(), scales.T, strict=True)}
    return Part(gradients, sqnorms.copy(), read_facts(directory, number))  # copied: a view of bytes is read-only


def read_facts(directory: RunDirectory, number: int) -> pa.Table:
    """The facts of one chunk's rows, without their gradients."""
    return directory.read_table(_names(number)[1])


def parts_there(directory: RunDirectory) -> set[int]:
    """The numbers of the parts that are there whole."""
    found = (re.fullmatch(r"part-(\d{6,})\.safetensors", name) for name in directory.list("part-"))
    return {int(match[1]) for match in found if match}


def _names(number: int) -> tuple[str, str]:
    return f"part-{number:06d}.safetensors", f"part-{number:06d}.parquet"


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _document(directory: RunDirectory) -> dict[str, Any]:
    """The content of index.json, of the one format that is known."""
    return directory.document(INDEX, _FORMAT, "holds no gradient index", "one comes of a run with index: true")


def _shifts(name: str, gradients: np.ndarray, dtype: DType) -> np.ndarray:
    """The exponent of two (rows, int32) by which each row is to be divided."""
    largest = np.maximum(gradients.max(1), -gradients.min(1))
    if not np.isfinite(largest).all():
        raise ValueError(f"{name}: gradients that are not finite; rows without a gradient are to be zeros")
    if dtype == "float32":
        return np.zeros(len(gradients), np.int32)
    return np.maximum(np.frexp(largest)[1] - 15, -126)  # a smaller power of two would not be a normal float32


def _narrow(gradients: np.ndarray, shift: np.ndarray, code: str) -> np.ndarray:
    if code == "F32":
        return np.ascontiguousarray(gradients, _STORED[code])
    scaled = gradients * np.ldexp(np.float32(1), -shift)[:, None]
    if code == "F16":
        return scaled.astype(_STORED[code])
    bits = scaled.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(_STORED[code])  # to nearest, ties to even


def _header(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What a safetensors file begins with: the length of a JSON text, and the text, padded to 8 bytes."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (code, shape) in layout.items():
        begin, end = end, end + int(np.prod(shape)) * _STORED[code].itemsize
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensors(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a safetensors file, views of its bytes; bfloat16 as float32."""
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        code, shape = entry["dtype"], entry["shape"]
        values = np.frombuffer(data, _STORED[code], int(np.prod(shape)), start + entry["data_offsets"][0])
        if code == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield name, values.reshape(shape)
