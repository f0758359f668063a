"""Columns that are put beside a corpus' own: their names, and their values in the corpus' order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray.corpus.files import SourceFile, open_file
from datainf_ray.corpus.records import split_records

PREFIX = "datainf_"
_BLOCK = 1 << 20
_FEW = 0.1  # of the rows: they are looked at one by one

_text = json.JSONEncoder(ensure_ascii=False).encode


class Feed:
    """Tables of rows that follow on one another, taken in any portions."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = iter(tables)
        self._held: pa.Table | None = None

    def take(self, count: int) -> pa.Table:
        """The next `count` rows."""
        parts: list[pa.Table] = []
        left = count
        while left or not parts:
            if self._held is None or not len(self._held):
                self._held = next(self._tables)
            parts.append(self._held.slice(0, left))
            self._held = self._held.slice(left)
            left -= len(parts[-1])
        return pa.concat_tables(parts)

    def rest(self) -> Iterator[pa.Table]:
        """What was not taken yet."""
        if self._held is not None:
            yield self._held
        yield from self._tables


@dataclass
class Extra:
    """Columns to be added to the rows of a corpus; `names` are what they are called in it."""

    schema: pa.Schema  #: under the names that we have for them
    feed: Feed
    names: tuple[str, ...] = ()

    def called(self, files: Sequence[SourceFile], stays: np.ndarray | None = None) -> Extra:
        """The same with names that none of the files has: those that one has begin `datainf_`.

        `stays` says of which rows it matters, where not of all.
        """
        taken = {name for file in files for name in file.columns}
        while True:
            names = []
            for name in self.schema.names:
                while name in taken:
                    name = f"{PREFIX}{name}"
                names.append(name)
            found = set(_keys_among(files, names, stays))
            if not found:
                return Extra(self.schema, self.feed, tuple(names))
            taken |= found

    def take(self, count: int) -> pa.Table:
        """The values of the next `count` rows, under their names in the corpus."""
        return self.feed.take(count).rename_columns(list(self.names))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The values of every row, by their names in the corpus."""
        for table in self.feed.rest():
            yield from table.rename_columns(list(self.names)).to_pylist()


def _keys_among(files: Sequence[SourceFile], names: Sequence[str], stays: np.ndarray | None) -> Iterator[str]:
    """Those of the names that are keys of a JSON object somewhere in the files, whose first rows alone are known."""
    first = 0
    few = stays is not None and stays.mean() < _FEW
    for file in files:
        start, first = first, first + file.rows
        if file.format not in ("jsonl", "json") or not file.rows:
            continue
        quoted = {name: json.dumps(name).encode() for name in names}
        quoted = quoted if few else _spelt(file, quoted)
        if not quoted:
            continue
        with open_file(file) as stream:
            for row, (_, record) in enumerate(split_records(stream, file, 0), start):
                assert isinstance(record, bytes)  # as of all JSON
                if stays is None or (row < len(stays) and stays[row]):
                    there = [name for name, text in quoted.items() if text in record]
                    yield from _keys(record, there) if there else ()


def _spelt(file: SourceFile, quoted: dict[str, bytes]) -> dict[str, bytes]:
    """Those of the texts that stand in the file at all, which is seen many times faster than row by row."""
    found, rest = dict[str, bytes](), b""
    longest = max(map(len, quoted.values()))
    with open_file(file) as stream:
        while block := stream.read(_BLOCK):
            data = rest + block
            found |= {name: text for name, text in quoted.items() if name not in found and text in data}
            rest = data[-longest:]
    return found


def _keys(record: bytes, names: Sequence[str]) -> Iterator[str]:
    try:
        values = json.loads(record)
    except (ValueError, RecursionError):
        return
    yield from (name for name in names if isinstance(values, dict) and name in values)


def as_json(table: pa.Table) -> list[bytes]:
    """The rows as what stands within the braces of a JSON object: `"rank": 1, "id": "a"`."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        key = f"{json.dumps(name, ensure_ascii=False)}: "
        columns.append([key + text for text in _written(column)])
    return [", ".join(row).encode() for row in zip(*columns, strict=True)]


def as_csv(table: pa.Table, delimiter: str, quoted: bool) -> list[bytes]:
    """The rows as fields of a CSV record, each with the delimiter before it."""
    values = [[_field(value, delimiter, quoted) for value in _written(c, text=True)] for c in table.columns]
    return [(delimiter + delimiter.join(row)).encode() for row in zip(*values, strict=True)]


def _written(column: pa.ChunkedArray, text: bool = False) -> list[str]:
    """The values as JSON, or with `text` as CSV has them; numbers in their shortest form."""
    null = "" if text else "null"
    if pa.types.is_string(column.type):
        values = column.to_pylist()
        if text:
            return [null if value is None else value for value in values]
        return [null if value is None else _text(value) for value in values]
    return [null if value is None else value for value in column.cast(pa.string()).to_pylist()]


def _field(value: str, delimiter: str, quoted: bool) -> str:
    if not quoted:  # quotes are letters there, and nothing can hold a delimiter
        return " ".join(value.replace(delimiter, " ").split())
    if any(sign in value for sign in (delimiter, '"', "\n", "\r")):
        line = io.StringIO()
        csv.writer(line, delimiter=delimiter, lineterminator="").writerow([value])
        return line.getvalue()
    return value
