"""The gradient index: every row's gradients on disk, so that new queries need no backward pass over the corpus.

    index.json                what the index holds; complete once the last part is there
    part-000000.safetensors   one chunk: a matrix (rows × d'_l) for every block, named as the block; `sqnorms`, `scales`
    part-000000.parquet       the same rows' facts: row, id, tokens, loss, …, predicted, preview, text

Any reader of safetensors reads the parts. The gradients of block k, in the order of index.json, are the matrix as
float32 times the column `scales[:, k]`. A row without a gradient (`status` is not "ok") has zeros. Both files of a part
hold a checksum and whose they are; see `runs.checksums`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datainf_ray.common.errors import DamagedError, RequestError, misfit, one_line
from datainf_ray.influence.block import Block
from datainf_ray.runs.checksums import BLANK, KEY, mark, read_checked, table_file
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import examples_schema, read_parquet

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
    checked: bool = True  #: its parts hold checksums; those of older versions do not

    @property
    def owner(self) -> str | None:
        """What its parts say whose they are; None where they say nothing."""
        return self.fingerprint if self.checked else None


class _Block(BaseModel):
    name: str
    kind: str
    shape: tuple[int, ...]
    stored: int = Field(ge=1)


class _Claim(BaseModel):
    """index.json as a run begins with it."""

    model_config = ConfigDict(extra="ignore")

    complete: bool
    fingerprint: str
    portions: dict[str, int] | None = None


class _Document(_Claim):
    """index.json, complete."""

    blocks: list[_Block] = Field(min_length=1)
    dtype: DType
    projection: int | None = Field(ge=1)
    seed: int
    rows: int = Field(ge=1)
    chunks: int = Field(ge=1)
    bytes: int = Field(ge=0)
    damping: dict[str, float] | None
    sign: str
    model: dict[str, Any]
    checked: bool = False


class Part(NamedTuple):
    """One chunk's rows, read back."""

    gradients: dict[str, np.ndarray]  # rows × d'_l float32 a block
    sqnorms: np.ndarray  # rows × blocks float64, of the gradients as they were before any projection
    facts: pa.Table


def facts_schema() -> pa.Schema:
    """The schema of part-*.parquet; `loss` and `sqnorm` are null where `status` is not "ok".

    `text` is as in texts.parquet and `picture` as in pictures.parquet, because the training rows need not be there any
    more when they are asked for. A part in which no row has a picture is written without that column.
    """
    more = [pa.field("preview", pa.string()), pa.field("text", pa.large_string())]
    more.append(pa.field("picture", pa.large_binary()))
    return pa.schema([*examples_schema(0, scores=False), *more])


def begin_index(directory: RunDirectory, fingerprint: str, portions: dict[str, int]) -> None:
    """Claim the directory for a run before its first part; `RequestError` if it holds another run's index.

    `portions` are the sizes that the run chose, which its parts follow.
    """
    claim = {"format": _FORMAT, "complete": False, "fingerprint": fingerprint, "portions": portions}
    if directory.commit(INDEX, _json(claim)):
        return
    refuse_another_index(directory, fingerprint)
    there = claimed(directory)
    theirs = portions if there is None or there.portions is None else there.portions
    if theirs != portions:
        ours, others = (", ".join(f"{k} {v}" for k, v in p.items()) for p in (portions, theirs))
        problem = f"holds parts made with {others}, and this run has {ours}"
        raise RequestError(directory.key, directory.url, problem, "remove it")


def refuse_another_index(directory: RunDirectory, fingerprint: str) -> None:
    """Raises `RequestError` where the directory holds the index of another run, or an index.json that is none."""
    there = claimed(directory)
    if there is not None and there.fingerprint != fingerprint:
        problem, remedy = "holds the gradient index of another run", "remove it, or choose another place"
        raise RequestError(directory.key, directory.url, problem, remedy)


def claimed(directory: RunDirectory) -> _Claim | None:
    """What index.json says of whose the index is; None where there is none."""
    return _checked(directory, _Claim, _document(directory)) if directory.exists(INDEX) else None


def write_index(directory: RunDirectory, index: Index) -> None:
    """Write index.json, when all parts are there: the index is complete then."""
    fields = {name: value for name, value in vars(index).items() if name not in ("blocks", "stored")}
    blocks = [
        {**asdict(block), "size": block.size, "stored": stored}
        for block, stored in zip(index.blocks, index.stored, strict=True)
    ]
    directory.write(INDEX, _json({"format": _FORMAT, "complete": True, **fields, "blocks": blocks}))


def open_index(directory: RunDirectory, part_rows: int) -> Index:
    """What the index in a directory holds, whose parts but for the last have `part_rows` rows.

    Raises `RequestError` where there is none, or one that cannot be used.
    """
    document = _document(directory)
    there = len(parts_there(directory))
    if not _checked(directory, _Claim, document).complete:
        problem = f"the index is not complete, {there} parts so far"
        raise RequestError(directory.key, directory.url, problem, "finish its run first")
    found = _checked(directory, _Document, document)
    remedy = "remove the index, and run its configuration again"
    if there != found.chunks or -(-found.rows // part_rows) != there:  # before any of it sizes anything
        told = f"{found.rows:,} rows in {found.chunks:,} parts of {part_rows:,}"
        raise RequestError(directory.key, directory.url, f"{INDEX} tells of {told}, and {there:,} are there", remedy)
    if found.damping is not None and found.damping.keys() != {b.name for b in found.blocks}:
        raise RequestError(directory.key, directory.url, f"{INDEX}: damping is not that of its blocks", remedy)
    fields = {name: getattr(found, name) for name in Index.__dataclass_fields__ if name not in ("blocks", "stored")}
    return Index(
        blocks=tuple(Block(b.name, b.kind, b.shape) for b in found.blocks),
        stored=tuple(b.stored for b in found.blocks),
        **fields,
    )


def write_part(
    directory: RunDirectory,
    number: int,
    gradients: Mapping[str, np.ndarray],
    sqnorms: np.ndarray,
    facts: pa.Table,
    dtype: DType,
    owner: str,
) -> int:
    """Commit one chunk's rows and return the bytes written. Equal rows give equal bytes; who comes second changes none.

    `owner` is the fingerprint of the index. What is there and is not as that run wrote it is replaced.

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
    marker, table = _names(number)
    data, rows_data = mark(file.getvalue(), owner, marker), table_file(facts, owner, table)
    if not (directory.commit(table, rows_data) and directory.commit(marker, data)):
        there = _whole(directory, number, owner)
        if there is None:  # damaged; or an attempt was cut off between the two, and may have seen other facts
            directory.write(table, rows_data)
            directory.write(marker, data)
        elif not there["row"].equals(facts["row"]):
            raise ValueError(f"{directory.path(marker)} holds other rows than chunk {number}")
    return len(data)


def _whole(directory: RunDirectory, number: int, owner: str) -> pa.Table | None:
    """The facts of a part of which both files are there and are as `owner` wrote them, else None."""
    try:
        read_checked(directory, _names(number)[0], owner)
        return read_facts(directory, number, owner)
    except (FileNotFoundError, DamagedError):
        return None


def read_part(directory: RunDirectory, number: int, owner: str | None) -> Part:
    """One chunk's rows; `owner` is `Index.owner`. Raises `DamagedError` if the part is damaged, another's, or gone."""
    name = _names(number)[0]
    try:
        tensors = dict(_tensors(_read(directory, name, owner)))
        sqnorms, scales = tensors.pop("sqnorms"), tensors.pop("scales")
        gradients = {name: g * scale[:, None] for (name, g), scale in zip(tensors.items(), scales.T, strict=True)}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:  # one without a checksum
        raise DamagedError(directory.path(name), f"is no part of an index: {one_line(error)}") from None
    return Part(gradients, sqnorms.copy(), read_facts(directory, number, owner))  # copied: a view of bytes is read-only


def read_facts(directory: RunDirectory, number: int, owner: str | None) -> pa.Table:
    """The facts of one chunk's rows, without their gradients. Raises as `read_part` does."""
    name = _names(number)[1]
    try:
        return read_parquet(_read(directory, name, owner), facts_schema()).replace_schema_metadata()
    except ValueError as error:
        raise DamagedError(directory.path(name), one_line(error)) from None


def _read(directory: RunDirectory, name: str, owner: str | None) -> bytes:
    try:
        return directory.read(name) if owner is None else read_checked(directory, name, owner)
    except FileNotFoundError:
        remedy = "run the configuration of its run again"
        raise DamagedError(directory.path(name), "is gone", remedy) from None


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


_Model = TypeVar("_Model", bound=BaseModel)


def _checked(directory: RunDirectory, kind: type[_Model], document: dict[str, Any]) -> _Model:
    """The content of index.json. Raises `RequestError` that names the field which is not what it should be."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise RequestError(directory.key, directory.url, f"{INDEX}: {misfit(error)}") from None


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
    entries: dict[str, Any] = {"__metadata__": {KEY: BLANK}}
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
        if name == "__metadata__":
            continue
        code, shape = entry["dtype"], entry["shape"]
        values = np.frombuffer(data, _STORED[code], int(np.prod(shape)), start + entry["data_offsets"][0])
        if code == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield name, values.reshape(shape)
