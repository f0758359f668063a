"""Where the rows that stay, or those that go, are written: a new file or a new folder, whole or not at all.

On this machine all is written beside its place, in the hidden folder that run directories have too, and gets its name
at the end; to a store it is uploaded at the end, file by file. What is there already is never touched.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import pyarrow as pa

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.common.storage import Options, persistently, reason
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.files import COMPRESSIONS, FOLDER, SourceFile, kind_of
from datainf_ray.runs.directory import SCRATCH, RunDirectory, created
from datainf_ray.runs.places import Place, apart, clear_of_rows, not_inside_another, place_of

_LEVEL = 4  # of gzip: 2 to 8 % larger than with its usual 6, and two to six times as fast


class Target:
    """A place that is to be made: one file, or a folder with a file for each of the corpus'.

    `write(file)` gives a stream for a file's rows, which is compressed as the name says; `publish` makes the place;
    `close` takes away what was not published.
    """

    def __init__(self, url: str, key: str, options: Options, corpus: Corpus, plain: bool = False) -> None:
        """`plain`: it is a folder in any case, for more than the corpus' files. Raises `RequestError`."""
        self.key = key
        self._place = RunDirectory(url, key, options)
        self.url = self._place.url
        self.folder = plain or _is_folder(self._place, url, key, corpus)
        self._check()
        self._names: dict[str, str | None] = {}  # of the files in it, and their compression
        self._stage = ""

    def named(self, file: SourceFile) -> str:
        """The name, in the folder, of what a file of the corpus becomes."""
        return _below(file)

    def has(self, name: str) -> bool:
        """Whether a file of this name is written into the folder."""
        return name in self._names

    def place(self) -> Place:
        return place_of(self.url, self.key, self._place.options)

    def check(self, read: Mapping[str, Sequence[str]], corpus: Corpus, more: Sequence[Place]) -> None:
        """Raises `RequestError` where the place is in the way of the corpus, of a run or of another place.

        `read` has the paths of the rows that the run has read, by their key: train.path, queries.path.
        """
        own = self.place()
        written = [_below(file) for file in corpus.files] if self.folder else [""]
        for key, entries in read.items():
            clear_of_rows(own, key, entries, corpus.files if key == "train.path" else (), self._place.options, written)
        for file in corpus.files:
            if file.format == FOLDER:
                apart(own, place_of(file.path, "train.path", file.options))
        not_inside_another(self._place, None)
        for other in more:
            if own.holds(other) or other.holds(own):
                raise RequestError(self.key, self.url, f"and {other.key} are in each other's way", "use two places")

    def _check(self) -> None:
        with self._place.reached():
            self._place.fs.invalidate_cache()
            there = persistently(lambda: self._place.fs.exists(self._place.root))
            if there or (self._place.local and os.path.lexists(self._place.root)):
                raise RequestError(self.key, self.url, "is there already", "name a new place; nothing is written over")

    def begin(self) -> None:
        """Make the hidden folder in which it is written. Raises `RequestError` where that cannot be."""
        self._staged()

    @contextmanager
    def write(self, file: SourceFile) -> Iterator[IO[bytes]]:
        """A stream for the rows of one of the corpus' files. Raises what the disk raises."""
        name = _below(file) if self.folder else ""
        codec = file.compression if self.folder else _compression(self._place.root)
        with self.other(name, codec) as stream:
            yield stream

    @contextmanager
    def other(self, name: str, codec: str | None = None) -> Iterator[IO[bytes]]:
        """A stream for a file that no file of the corpus becomes; its name in the folder."""
        path = os.path.join(self._staged(), name) if name else os.path.join(self._staged(), "file")
        self._names[name] = codec
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as raw:
            yield from _compressed(raw, codec)  # Arrow's compression closes what it has written into
        with open(path, "rb") as whole:
            os.fsync(whole.fileno())  # else a crash of the machine can leave the new name with no content

    def publish(self) -> None:
        """Give it its name. Raises `RequestError` where something is there by now."""
        try:
            if self._place.local and self.folder:
                os.rename(self._staged(), self._place.root)  # fails where there is anything but an empty folder
            elif self._place.local:
                created(os.path.join(self._staged(), "file"), self._place.root)
            else:
                self._upload()
        except (FileExistsError, NotADirectoryError):
            raise RequestError(self.key, self.url, "is there by now", "name a new place") from None
        except OSError as error:
            raise RunFailedError(f"{self.key}: {self.url}: cannot be written: {reason(error)}") from None
        self.close()

    def _upload(self) -> None:
        for name in self._names:
            at = f"{self._place.root}/{name}" if name else self._place.root
            if persistently(lambda at=at: self._place.fs.exists(at)):  # type: ignore[misc]
                raise FileExistsError(at)
            path = os.path.join(self._staged(), name or "file")
            persistently(lambda path=path, at=at: self._place.fs.put_file(path, at))  # type: ignore[misc]

    def close(self) -> None:
        """Take away what was not published."""
        if self._stage:
            shutil.rmtree(self._stage, ignore_errors=True)
            with suppress(OSError):  # another is at work there, or something is not ours
                os.rmdir(os.path.dirname(self._stage)) if self._place.local else None
        self._stage = ""

    def _staged(self) -> str:
        if not self._stage and self._place.local:
            parent, name = os.path.split(self._place.root)
            self._stage = os.path.join(parent, SCRATCH, f"{name[:100]}.{uuid.uuid4().hex}.tmp")
            try:
                os.makedirs(self._stage)
            except OSError as error:
                raise RequestError(self.key, self.url, f"cannot be written: {reason(error)}") from None
        elif not self._stage:
            self._stage = tempfile.mkdtemp(prefix="datainf-")
        return self._stage


def _is_folder(place: RunDirectory, url: str, key: str, corpus: Corpus) -> bool:
    """Whether a folder is meant: by the slash at its end, or because its name is no data file's.

    Raises `RequestError` where a name is of another format than the corpus, or of one file where the corpus is several.
    """
    kind = None if url.endswith("/") else kind_of(place.fs, place.root)
    if kind is None:
        return True
    if any(file.format == FOLDER for file in corpus.files):
        raise RequestError(key, url, "is one file, and the corpus is a folder of pictures", "name a folder")
    if len(corpus.files) > 1:
        problem = f"is one file, and the corpus is {len(corpus.files)}"
        raise RequestError(key, url, problem, "name a folder; its files will have the corpus' names")
    (file,) = corpus.files
    wanted = kind_of(place.fs, file.path) or (file.format, file.compression)
    if kind[0] != wanted[0]:
        suffix = "".join(s for s in (_suffix(file),) if s)
        raise RequestError(key, url, f"is {kind[0]}, and the corpus is {wanted[0]}", f"end it in {suffix}")
    return False


def _suffix(file: SourceFile) -> str:
    name = file.path.rpartition("/")[2].lower()
    codec = next((end for end in COMPRESSIONS if name.endswith(end)), "")
    return f".{name.removesuffix(codec).rpartition('.')[2]}{codec}"


def _below(file: SourceFile) -> str:
    """What a file of the corpus is called in the folder: as row ids call it, which cannot lead out of the folder."""
    parts = file.name.partition("://")[2] or file.name
    return "/".join(part for part in parts.split("/") if part not in ("", ".", ".."))


def _compression(path: str) -> str | None:
    return next((codec for suffix, codec in COMPRESSIONS.items() if path.lower().endswith(suffix)), None)


_COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda raw: gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0),  # the same rows give the same bytes
    "bz2": lambda raw: bz2.BZ2File(raw, "wb"),
    "xz": lambda raw: lzma.LZMAFile(raw, "wb"),  # noqa: SIM115 - `_compressed` closes it
    "zstd": lambda raw: pa.CompressedOutputStream(pa.PythonFile(raw, mode="w"), "zstd"),
    "lz4": lambda raw: pa.CompressedOutputStream(pa.PythonFile(raw, mode="w"), "lz4"),
}


def _compressed(raw: IO[bytes], codec: str | None) -> Iterator[IO[bytes]]:
    if codec is None:
        yield raw
        return
    with _COMPRESSED[codec](raw) as packed, io.BufferedWriter(_Raw(packed), 1 << 20) as stream:
        yield stream


class _Raw(io.RawIOBase):
    """What compresses, as Python's buffers take it; it is closed by whoever has opened it."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(bytes(data))
        return len(data)
