"""The records of a text file, JSON lines or CSV: where each begins, and what it holds.

Offsets are bytes in the decompressed stream. Bytes that are not UTF-8 come out as lone surrogates (Python's
surrogateescape), so that one bad value stays one bad value; `rows` finds them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from datainf_ray.corpus.files import SourceFile, changed, open_file

_BOM = b"\xef\xbb\xbf"
_STRIDE = 256
_OFFSETS = 1 << 16  # at most so many are kept per file; the stride doubles when there are more
_PROBED = 100  # rows whose keys make up the columns of a JSON lines file
_LONGEST_FIELD = 1 << 28

#: A record as it was split off: a line of JSON, the fields of a CSV record, or the error that made it none.
Record = bytes | list[str] | csv.Error


@dataclass
class Parsed:
    """A record's values by column, or what is wrong with it."""

    values: dict[str, Any]
    problem: str | None = None


def survey_text(file: SourceFile) -> SourceFile:
    """`file` with its rows, columns, stride and offsets, from one pass over its content.

    Raises ValueError where the file as a whole is not what its name says, and what the stream raises.
    """
    with open_file(file) as stream:
        records = split_records(stream, file, 0)
        columns: dict[str, None] = {}
        if file.format == "csv":
            _, header = next(records, (0, []))
            if isinstance(header, csv.Error):
                raise ValueError(f"no CSV header: {header}")
            assert isinstance(header, list)  # as all records of a CSV file are
            columns = dict.fromkeys(header)
        offsets: list[int] = []
        stride, rows, objects, problem = _STRIDE, 0, 0, None
        for offset, record in records:
            if rows % stride == 0:
                if len(offsets) == _OFFSETS:
                    stride, offsets = 2 * stride, offsets[::2]
                if rows % stride == 0:
                    offsets.append(offset)
            if rows < _PROBED and file.format == "jsonl":
                parsed = parse_record(record, file)
                columns.update(dict.fromkeys(parsed.values))
                objects += parsed.problem is None
                problem = problem or parsed.problem
            rows += 1
    if file.format == "jsonl" and rows and not objects:
        raise ValueError(f"no JSON lines, one object a line: the first is {problem}")
    return replace(file, rows=rows, columns=tuple(columns), stride=stride, offsets=tuple(offsets))


def split_records(stream: BinaryIO, file: SourceFile, offset: int) -> Iterator[tuple[int, Record]]:
    """The offset and content of every record from `offset` on, where `stream` stands and a record begins.

    Blank lines are no records. A CSV file's header is a record like any other. Raises ValueError where a CSV file
    ends inside quotes.
    """
    if file.format == "jsonl":
        for line in stream:
            if not line.isspace():
                yield offset, line.removeprefix(_BOM) if offset == 0 else line
            offset += len(line)
        return
    csv.field_size_limit(_LONGEST_FIELD)  # the default, 128 KiB, is less than some documents
    lines = _Lines(stream, offset)
    reader = csv.reader(lines, delimiter=file.delimiter)
    while True:
        start = lines.position
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, error
            continue
        if lines.ended:  # the reader wanted another line to finish this record
            raise ValueError(f"a quote that opens at byte {start} or later is never closed")
        if fields:
            yield start, fields


def parse_record(record: Record, file: SourceFile) -> Parsed:
    """What a record holds: an object's keys, or a CSV record's fields by the names in the header."""
    if isinstance(record, csv.Error):
        return Parsed({}, f"not CSV: {record}")
    if isinstance(record, list):
        if len(record) != len(file.columns):
            return Parsed({}, f"{len(record)} fields where the header has {len(file.columns)}")
        return Parsed(dict(zip(file.columns, record, strict=True)))
    try:
        values = json.loads(decode(record))
    except (ValueError, RecursionError) as error:
        return Parsed({}, f"not JSON: {error}")
    if not isinstance(values, dict):
        return Parsed({}, "not a JSON object")
    return Parsed(values)


def decode(content: bytes) -> str:
    """The bytes as text; those that are not UTF-8 as lone surrogates."""
    return content.decode("utf-8", "surrogateescape")


class TextSource:
    """The rows of one text file, read forward; going back costs a seek, or a new start where it is compressed."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._stream: BinaryIO | None = None
        self._records: Iterator[tuple[int, Record]] = iter(())
        self._next = 0

    def read(self, start: int, stop: int) -> Iterator[Parsed]:
        """Rows start..stop-1. Raises OSError where the file cannot be read, or has changed since it was planned."""
        self._seek(start)
        while self._next < stop:
            _, record = next(self._records, (0, None))
            if record is None:
                raise changed(self._file, f"ends at row {self._next}")
            self._next += 1
            if self._next > start:
                yield parse_record(record, self._file)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _seek(self, row: int) -> None:
        at = row // self._file.stride
        ahead = at * self._file.stride > self._next and self._file.compression is None
        if self._stream is not None and self._next <= row and not ahead:
            return
        if self._stream is None or self._file.compression is not None:
            self.close()
            self._stream = open_file(self._file)
        offset = self._file.offsets[at]
        if self._file.compression is None:
            self._stream.seek(offset)
        else:
            _skip(self._stream, offset)
        self._records = split_records(self._stream, self._file, offset)
        self._next = at * self._file.stride


class _Lines:
    """A stream's lines as text, counting bytes; `ended` once a line was asked for and there was none."""

    def __init__(self, stream: BinaryIO, position: int) -> None:
        self._stream, self.position, self.ended = stream, position, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            self.ended = True
            raise StopIteration
        first = self.position == 0
        self.position += len(line)
        return decode(line.removeprefix(_BOM) if first else line)


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0:
        count -= len(stream.read(min(count, 1 << 20))) or count
