"""The files of a corpus: what is known of each, what its name stands for, and how it is opened."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from datainf_ray.common.storage import Options, store_of

#: File name suffix: format.
FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
FOLDER = "pictures"  #: the format of a folder of pictures with captions, which is one source of rows
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}

_BLOCK = 1 << 20
_FETCH = 8 << 20  # bytes asked of a store at a time; some stores' default is far more than a chunk


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus. `rows` to `offsets` are filled in by the survey."""

    path: str  #: local path or full fsspec URL
    name: str  #: what row ids call it: relative to the entry's directory
    format: str  #: parquet, jsonl, json (an array), csv or arrow; or pictures, of a folder
    compression: str | None  #: gzip, bz2, xz, zstd, lz4 or None
    size: int  #: bytes, as stored
    identity: str  #: changes when the content does: a hash, the store's checksum, or the time of the last change
    rows: int = 0
    columns: tuple[str, ...] = ()
    nested: tuple[tuple[str, ...], ...] = ()  #: what lies within columns: ("data", "prompt") of data.prompt
    groups: tuple[int, ...] = ()  #: Parquet, Arrow: the first row of every row group or record batch
    stride: int = 0  #: text: rows between two offsets
    offsets: tuple[int, ...] = ()  #: text: byte at which row k·stride begins, in the decompressed stream
    merged: int = 0  #: TSV: rows of which a field has tabs and line breaks, as where quotes are part of the text
    hint: tuple[str, str] | None = None  #: what may be wrong if its columns are not what is needed, and the remedy
    quoting: str = "standard"  #: CSV: none where quotes are part of the text
    partition: tuple[tuple[str, str | None], ...] = ()  #: columns that its folders say, as in lang=en/part-0.parquet
    options: Options = field(default_factory=dict, repr=False, compare=False)  #: what its store is opened with

    @property
    def delimiter(self) -> str:
        """What separates the fields of a CSV file."""
        return "\t" if ".tsv" in PurePosixPath(self.path.lower()).suffixes[-2:] else ","


def kind_of(fs: AbstractFileSystem, path: str) -> tuple[str, str | None] | None:
    """Format and compression that a file's name stands for; None where it is not a data file's."""
    name = last_of(path).lower()
    if not isinstance(fs, LocalFileSystem):
        name = name.partition("?")[0]  # an address may be signed
    compression = next((codec for suffix, codec in COMPRESSIONS.items() if name.endswith(suffix)), None)
    if compression is not None:
        name = name.rpartition(".")[0]
    kind = FORMATS.get(PurePosixPath(name).suffix)
    return None if kind is None else (kind, compression)


def known_kinds() -> str:
    return f"{' '.join(FORMATS)}, each also with {' '.join(COMPRESSIONS)}"


def below(path: str, directory: str) -> str:
    """A path as it is within a directory."""
    directory = directory.rstrip("/") + "/"
    return path[len(directory) :] if path.startswith(directory) else path.lstrip("/")


def last_of(path: str) -> str:
    """The name of a file or folder."""
    return path.rstrip("/").rpartition("/")[2]


def open_file(file: SourceFile) -> io.BufferedReader:
    """The file's decompressed content, to be read from front to back; it can seek where it is not compressed.

    Raises OSError where the file cannot be opened, or is not of the size it was planned with.
    """
    fs, path = store_of(file.path, file.options)
    _still_a_file(file, fs, path)
    raw = fs.open(path, "rb", block_size=_FETCH)
    _unchanged(file, getattr(raw, "size", None))
    content = raw if file.compression is None else _DECOMPRESS[file.compression](raw)
    return io.BufferedReader(content, _BLOCK)


def open_seekable(file: SourceFile) -> pa.NativeFile:
    """The file's decompressed content, to be read anywhere; a compressed file is unpacked to an unnamed local one.

    Raises OSError as `open_file` does.
    """
    if file.compression is not None:
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - pyarrow's file keeps it open
        with open_file(file) as stream:
            shutil.copyfileobj(stream, unpacked, _BLOCK)
        unpacked.seek(0)
        return pa.PythonFile(unpacked, mode="r")
    fs, path = store_of(file.path, file.options)
    _still_a_file(file, fs, path)
    if isinstance(fs, LocalFileSystem) and file.size > 0:
        local = pa.memory_map(path) if file.format == "arrow" else pa.OSFile(path)
        _unchanged(file, local.size())
        return local
    raw = fs.open(path, "rb", cache_type="none")  # pyarrow knows what it needs next
    _unchanged(file, getattr(raw, "size", None))
    return pa.PythonFile(raw, mode="r")


def changed(file: SourceFile, how: str) -> OSError:
    """The error that says that a file is no longer what was planned."""
    return OSError(errno.ESTALE, f"{how}: it has changed since it was planned", file.path)


def _unchanged(file: SourceFile, size: int | None) -> None:
    if size and file.size and size != file.size:  # some stores do not tell
        raise changed(file, f"{size} bytes instead of {file.size}")


def _still_a_file(file: SourceFile, fs: AbstractFileSystem, path: str) -> None:
    if isinstance(fs, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise changed(file, "no file any more")  # a pipe would be waited for


def _arrow_codec(codec: str) -> Callable[[Any], Any]:
    # Arrow's own: fsspec's zstd reader stops at the end of the first frame without a word.
    return lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)


_DECOMPRESS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _arrow_codec("zstd"),
    "lz4": _arrow_codec("lz4"),
}
