"""The records of a text file, JSON lines or CSV: where each begins, and what it holds.

Offsets are bytes in the decompressed stream. Bytes that are not UTF-8 come out as lone surrogates (Python's
surrogateescape), so that one bad value stays one bad value; `rows` finds them.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from datainf_ray.common.words import counted
from datainf_ray.corpus.arrays import begins_array, split_array
from datainf_ray.corpus.files import SourceFile, changed, open_file
from datainf_ray.corpus.lookup import Path, add_paths, paths_within
from datainf_ray.corpus.regions import regions

#: What the formats of text files are called.
TEXT_FORMATS = ("jsonl", "json", "csv")

_BOM = b"\xef\xbb\xbf"
_STRIDE = 256
_OFFSETS = 1 << 16  # at most so many are kept per file; the stride doubles when there are more
_PROBED = 100  # rows whose keys make up the columns of a JSON lines file
_LONGEST_FIELD = 1 << 28
_HEAD = 1 << 16  # bytes that show what a file is
_TOOLS = (b"tools", b"functions")
#: A key whose value is a list of objects, and the first of them up to where another begins or it ends.
_WRAPPED = re.compile(rb'"([^"\\]{1,100})"\s*:\s*\[\s*\{([^{}]*)')
#: What such objects have where they are messages or tools, and the object that holds them is a row.
_OF_MESSAGES = re.compile(rb'"(?:role|from|speaker|human|function)"\s*:')

#: A record as it was split off: a line of JSON, the fields of a CSV record, or the error that made it none.
Record = bytes | list[str] | csv.Error


@dataclass
class Parsed:
    """A record's values by column, or what is wrong with it."""

    values: dict[str, Any]
    problem: str | None = None


def survey_text(file: SourceFile) -> SourceFile:
    """`file` with its rows, columns, stride and offsets, from one pass over its content.

    A JSON array is told from JSON lines by its content. Raises ValueError where the file as a whole is not what its
    name says, and what the stream raises.
    """
    with open_file(file) as stream:
        head = stream.peek(_HEAD)[:_HEAD]
        _check_encoding(head)
        if not (file.format == "jsonl" and begins_array(head)):
            hint = _hint(head, file)
            found = _survey(stream, file, "; ".join(hint or ()) if file.format == "jsonl" else "")
            return replace(found, hint=hint if file.format == "csv" or found.rows == 1 else None)
    try:
        with open_file(file) as stream:
            return _survey(stream, replace(file, format="json"))
    except ValueError as error:  # JSON lines may begin with a bad one
        problem = f"nor is it a JSON array: {error}"
    with open_file(file) as stream:
        return _survey(stream, file, problem)


def _survey(stream: BinaryIO, file: SourceFile, problem: str = "") -> SourceFile:
    """`survey_text` of an open file of a known format; `problem` says what else it may be, if it is not that."""
    records = split_records(stream, file, 0)
    columns: dict[str, None] = {}
    nested: dict[Path, None] = {}
    if file.format == "csv":
        columns = _header(records)
    tabs = file.format == "csv" and file.delimiter == "\t"
    places = _Places()
    rows, objects, merged, first, beginning = 0, 0, 0, None, None
    for offset, record in records:
        places.add(rows, offset)
        if rows < _PROBED and isinstance(record, bytes):
            parsed = parse_record(record, file)
            columns.update(dict.fromkeys(parsed.values))
            add_paths(nested, paths_within(parsed.values))
            objects += parsed.problem is None
            first = first or parsed.problem
            beginning = parsed.problem if rows == 0 else beginning
        if tabs and isinstance(record, list):
            merged += any("\t" in field and "\n" in field for field in record)
        rows += 1
        if file.format == "jsonl" and rows == _PROBED:  # of the others only where they begin is needed
            assert isinstance(record, bytes)
            rows = _count_lines(stream, rows, offset + len(record), places)
            break
    lines = "no JSON lines, one object a line" if file.format == "jsonl" else "no array of objects"
    # Of an array with one element a line, the last line is an object by itself.
    few = problem and beginning and 2 * objects < min(rows, _PROBED)
    if file.format != "csv" and rows and (few or not objects):
        raise ValueError("; ".join(filter(None, (f"{lines}: the first is {first}", problem))))
    found = replace(file, rows=rows, columns=tuple(columns), nested=tuple(nested))
    return replace(found, stride=places.stride, offsets=tuple(places.offsets), merged=merged)


class _Places:
    """Where every `stride`-th row begins; the stride doubles when that are too many."""

    def __init__(self) -> None:
        self.stride, self.offsets = _STRIDE, list[int]()

    def add(self, row: int, offset: int) -> None:
        """The next row, or the next whose number is a multiple of `stride`."""
        if row % self.stride == 0:
            if len(self.offsets) == _OFFSETS:
                self.stride, self.offsets = 2 * self.stride, self.offsets[::2]
            if row % self.stride == 0:
                self.offsets.append(offset)


def _count_lines(stream: BinaryIO, rows: int, offset: int, places: _Places) -> int:
    """How many rows JSON lines have in all, of which `rows` end at `offset`, where `stream` stands."""
    for region in regions(stream):
        starts = region.starts[region.is_row]
        for at in range(-rows % places.stride, len(starts), places.stride):
            places.add(rows + at, offset + int(starts[at]))
        rows, offset = rows + len(starts), offset + len(region.data)
    return rows


def _header(records: Iterator[tuple[int, Record]]) -> dict[str, None]:
    _, header = next(records, (0, []))
    if isinstance(header, csv.Error):
        raise ValueError(f"no CSV header: {header}")
    assert isinstance(header, list)  # as all records of a CSV file are
    twice = next((name for k, name in enumerate(header) if name and name in header[:k]), None)
    if twice is not None:
        raise ValueError(f"two of its columns are called {twice!r}")
    # A spreadsheet leaves columns without a name.
    return dict.fromkeys(name or (f"column {k}" if "" in header[:k] else "") for k, name in enumerate(header))


def _check_encoding(head: bytes) -> None:
    """Raises ValueError where a file begins as UTF-16 or UTF-32 does."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(head) > 1 and 0 in head[:2]):
        wide = "UTF-32" if head[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else "UTF-16"
        raise ValueError(f"it is {wide}; make it UTF-8, as by iconv -f {wide} -t UTF-8 FILE > NEW")


def _hint(head: bytes, file: SourceFile) -> tuple[str, str] | None:
    """What may be wrong with a file that has not the columns that are needed, and what would be right."""
    name = shlex.quote(PurePosixPath(file.path).name)
    lists = _WRAPPED.finditer(head) if file.format == "jsonl" and head.lstrip(_BOM).lstrip()[:1] == b"{" else ()
    wrapped = next((found for found in lists if not (found[1] in _TOOLS or _OF_MESSAGES.search(found[2]))), None)
    if wrapped is not None:
        within = decode(wrapped[1])
        key = f".{within}" if within.isidentifier() and within.isascii() else f'.["{within}"]'
        make = f"make lines of them: jq -c {shlex.quote(f'{key}[]')} {name} > rows.jsonl"
        return f"it is an object whose {within} has the rows", make
    header = decode(head).partition("\n")[0]
    if file.format == "csv" and file.delimiter not in header:
        found = next((sign for sign in ";\t|" if sign in header), None)
        if found == "\t":
            return "its fields are divided by tabs", "call it .tsv"
        if found is not None:
            make = f"pandas.read_csv({file.path!r}, sep={found!r}).to_json('rows.jsonl', orient='records', lines=True)"
            return f"its fields are divided by '{found}', and a CSV file's by commas", f"convert it: {make}"
    return None


def split_records(stream: BinaryIO, file: SourceFile, offset: int) -> Iterator[tuple[int, Record]]:
    """The offset and content of every record from `offset` on, where `stream` stands and a record begins.

    Blank lines are no records. A CSV file's header is a record like any other. Raises ValueError where a CSV file
    ends inside quotes.
    """
    if file.format == "json":
        yield from split_array(stream, offset)
        return
    if file.format == "jsonl":
        for line in stream:
            if not line.isspace():
                yield offset, line.removeprefix(_BOM) if offset == 0 else line
            offset += len(line)
        return
    csv.field_size_limit(_LONGEST_FIELD)  # the default, 128 KiB, is less than some documents
    lines = _Lines(stream, offset)
    if file.quoting == "none":
        reader = csv.reader(lines, delimiter=file.delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
    else:
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
            problem = f"a quote that opens at byte {start} or later is never closed"
            raise ValueError(f"{problem}; where quotes are part of the text, set quoting: none")
        if fields:
            yield start, fields


def parse_record(record: Record, file: SourceFile) -> Parsed:
    """What a record holds: an object's keys, or a CSV record's fields by the names in the header."""
    if isinstance(record, csv.Error):
        return Parsed({}, f"not CSV: {record}")
    if isinstance(record, list):
        if len(record) != len(file.columns):
            return Parsed({}, f"{counted(len(record), 'field')} where the header has {len(file.columns)}")
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
