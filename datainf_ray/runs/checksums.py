"""Files that say whose they are, and whether they are as they were written.

A Parquet, safetensors or JSON file holds, under `KEY` among its metadata, the SHA-256 of its owner, its name and all of
its own bytes, with zeros in the place of the checksum itself. So it stays a plain file of its format, is written in one
step, and a bit that has flipped, an end that is missing, and another's file under its name are all noticed.

What a run is taken up from, and the parts of a gradient index, are such files. The owner is the run's fingerprint.
The tables of a finished run hold nothing of the kind: run.json has a `Stored` of each.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from datainf_ray.common.errors import DamagedError
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import read_parquet, table_bytes

KEY = "datainf.checksum"
BLANK = "0" * 64

_PLACE = re.compile(KEY.encode() + rb"(?s:.{2,4}?)([0-9a-f]{64})")
_BLOCK = 2**18
_TAIL = 8  # bytes at the end of a Parquet file: how long its footer is, and "PAR1"


class Stored(BaseModel):
    """What a file of a finished run held when it was written."""

    model_config = ConfigDict(frozen=True)

    bytes: int = Field(ge=0)
    sha256: str
    footer: str | None = None  #: the SHA-256 of a part's footer, so that a few columns can be read and still be trusted


def stored(data: bytes) -> Stored:
    """Of a small file."""
    return Stored(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def stored_part(file: IO[bytes]) -> Stored:
    """Of a Parquet file that is open for reading."""
    whole = hashlib.sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        whole.update(block)
    size, footer = measured(file)
    return Stored(bytes=size, sha256=whole.hexdigest(), footer=footer)


def measured(file: IO[bytes]) -> tuple[int, str | None]:
    """An open Parquet file's size, and the SHA-256 of its footer; None where there is none."""
    size = file.seek(0, io.SEEK_END)
    if size < _TAIL:
        return size, None
    file.seek(size - _TAIL)
    length = int.from_bytes(file.read(_TAIL)[:4], "little") + _TAIL
    if length > size:
        return size, None
    file.seek(size - length)
    return size, hashlib.sha256(file.read(length)).hexdigest()


def write_document(directory: RunDirectory, name: str, value: Any, owner: str) -> None:
    """A JSON file with a checksum."""
    text = json.dumps({KEY: BLANK, "value": value}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    directory.write(name, mark(text.encode(), owner, name))


def read_document(directory: RunDirectory, name: str, owner: str) -> Any:
    """What `write_document` wrote. Raises `DamagedError`, and `FileNotFoundError`."""
    return json.loads(read_checked(directory, name, owner))["value"]


def tensors_file(tensors: Mapping[str, np.ndarray], owner: str, name: str) -> bytes:
    """A safetensors file with a checksum."""
    return mark(save(dict(tensors), metadata={KEY: BLANK}), owner, name)


def read_tensors(directory: RunDirectory, name: str, owner: str) -> dict[str, np.ndarray]:
    """What `tensors_file` made. Raises as `read_document` does."""
    data = read_checked(directory, name, owner)
    try:
        return load(data)
    except SafetensorError as error:  # it is as it was written, and still none: another version's
        raise DamagedError(directory.path(name), f"cannot be read as safetensors: {error}") from None


def table_file(table: pa.Table, owner: str, name: str) -> bytes:
    """A Parquet file with a checksum, and the metadata that the table's schema has."""
    metadata = {**(table.schema.metadata or {}), KEY.encode(): BLANK.encode()}
    return mark(table_bytes(table.replace_schema_metadata(metadata)), owner, name)


def read_checked_table(directory: RunDirectory, name: str, owner: str, schema: pa.Schema | None = None) -> pa.Table:
    """What `table_file` made. Raises as `read_document` does."""
    data = read_checked(directory, name, owner)
    try:
        return read_parquet(data, schema)
    except ValueError as error:
        raise DamagedError(directory.path(name), str(error)) from None


def read_checked(directory: RunDirectory, name: str, owner: str) -> bytes:
    """The content of a file with a checksum. Raises `DamagedError` where it is not as `owner` wrote it."""
    data = directory.read(name)
    if (problem := wrong(data, owner, name)) is not None:
        raise DamagedError(directory.path(name), problem)
    return data


def wrong(data: bytes, owner: str, name: str) -> str | None:
    """What is wrong with the content of a file with a checksum; None: it is as `owner` wrote it."""
    if not data:
        return "is empty"
    place = _place(data)
    if place is None:
        return "has no checksum: it is damaged, or no file of this run"
    if _digest(data, place, owner, name) != data[place : place + len(BLANK)].decode():
        return "its checksum is another: it is damaged, or another run's"
    return None


def mark(data: bytes, owner: str, name: str) -> bytes:
    """The same bytes with their checksum in the place that is kept for it."""
    place = _place(data)
    assert place is not None, "a file to be marked has a place for the checksum"
    return data[:place] + _digest(data, place, owner, name).encode() + data[place + len(BLANK) :]


def _place(data: bytes) -> int | None:
    """Where the checksum stands: in Parquet behind the rows, which may hold any text, and else before them."""
    if data.endswith(b"PAR1"):
        at = data.rfind(KEY.encode())
        found = None if at < 0 else _PLACE.match(data, at)
    else:
        found = _PLACE.search(data)
    return None if found is None else found.start(1)


def _digest(data: bytes, place: int, owner: str, name: str) -> str:
    view = memoryview(data)
    total = hashlib.sha256(f"{owner} {name}\n".encode())
    for piece in (view[:place], BLANK.encode(), view[place + len(BLANK) :]):
        total.update(piece)
    return total.hexdigest()
