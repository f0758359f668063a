"""The rows of a chunk, good and bad, in order and under their ids."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from datainf_ray.common.storage import persistently
from datainf_ray.common.words import escaped
from datainf_ray.corpus.chunks import Chunk, Corpus
from datainf_ray.corpus.columns import MISSING, SPAN
from datainf_ray.corpus.files import FOLDER, SourceFile
from datainf_ray.corpus.lookup import Lookup
from datainf_ray.corpus.pictures import PICTURE, PictureSource, picture_bytes
from datainf_ray.corpus.records import TEXT_FORMATS, Parsed, TextSource
from datainf_ray.corpus.tables import TableSource
from datainf_ray.corpus.talks import without_nulls
from datainf_ray.corpus.templates import TemplateError

SPARE = ("tools", "system", "chat_template_kwargs")  #: roles that a row may lack, or have null
_TALK_KINDS = ("messages", "prompt-completion")
_TALKS = ("messages", "prompt", "completion", *SPARE)


@dataclass
class Row:
    """One row: its fields by role, or what is wrong with it in `problem`, and then `fields` has what could be read."""

    row: int  #: number in the corpus
    #: The id column's value; "<file>#<row in file>" without one, or where it is null or not UTF-8. Of a folder of
    #: pictures the name of the picture, behind that of the folder where there are several.
    id: str
    fields: dict[str, Any]
    group: str | None  #: the group column's value
    problem: str | None  #: null in a row that can be encoded


class RowReader:
    """Reads rows of a corpus: only the columns that are needed, and on from where the last chunk ended.

    Keeps at most one file open, with one decoded batch (about 64 MiB) where it is Parquet or Arrow. Without `pictures`
    what stands in a row for a picture is left as it is.
    """

    def __init__(self, corpus: Corpus, pictures: bool = True) -> None:
        self._corpus, self._pictures = corpus, pictures
        wanted = (*corpus.columns.values(), corpus.id_column, corpus.group_column)
        self._asked = list(dict.fromkeys(column for column in wanted if column is not None))
        self._raw = frozenset(c for role, c in corpus.columns.items() if corpus.types.get(role) == PICTURE)
        self._starts = list(itertools.accumulate((file.rows for file in corpus.files), initial=0))[:-1]
        self._open: tuple[int, TextSource | TableSource | PictureSource, Lookup] | None = None

    def read(self, chunk: Chunk) -> list[Row]:
        """The chunk's rows: exactly `chunk.rows`, in order, whatever is wrong with them.

        Raises OSError where a file cannot be reached or has changed since it was planned.
        """
        return persistently(lambda: [row for s in chunk.segments for row in self._rows(s.file, s.start, s.stop)])

    def close(self) -> None:
        """Closes the file that is open; the next read opens what it needs."""
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def _rows(self, index: int, start: int, stop: int) -> Iterator[Row]:
        file = self._corpus.files[index]
        try:
            source, lookup = self._source(index)
            for number, parsed in enumerate(source.read(start, stop), start):
                name = f"{file.name}#{number}"
                if file.format == FOLDER and _encodable(picture := parsed.values["file_name"]):
                    name = f"{file.name}/{picture}" if file.name else picture  # it has a name where there are several
                row = self._row(self._starts[index] + number, name, parsed, lookup)
                self._fetch(row, file)
                if file.format in ("parquet", "arrow"):  # whose structs have null where a dict had nothing
                    row.fields |= {role: without_nulls(row.fields[role]) for role in _TALKS if role in row.fields}
                yield row
        except Exception:
            self.close()  # a second attempt begins with a connection of its own
            raise

    def _fetch(self, row: Row, file: SourceFile) -> None:
        """Put a picture's bytes in the place of what stands for it, or where there was none and it was made."""
        if self._corpus.made is not None and row.problem is None:
            try:
                row.fields["image"] = self._corpus.made.read(row.row)
            except ValueError as error:
                row.problem = f"image {error}"
        for role, wanted in self._corpus.types.items() if self._pictures else ():
            if wanted == PICTURE and row.problem is None:
                try:
                    row.fields[role] = picture_bytes(row.fields[role], file)
                except ValueError as error:
                    row.problem = f"{role} {error}"

    def _source(self, index: int) -> tuple[TextSource | TableSource | PictureSource, Lookup]:
        if self._open is None or self._open[0] != index:
            self.close()
            file = self._corpus.files[index]
            lookup = Lookup(file, self._asked)
            source: TextSource | TableSource | PictureSource
            if file.format == FOLDER:
                source = PictureSource(file)
            elif file.format in TEXT_FORMATS:
                source = TextSource(file)
            else:
                source = TableSource(file, lookup.paths, self._raw)
            self._open = (index, source, lookup)
        return self._open[1:]

    def _row(self, number: int, default: str, parsed: Parsed, lookup: Lookup) -> Row:
        corpus, values, problem = self._corpus, parsed.values, parsed.problem
        fields: dict[str, Any] = {}
        spare = MISSING | (dict.fromkeys(SPARE) if corpus.kind in _TALK_KINDS else {})
        spare |= {role: None for role, wanted in corpus.types.items() if wanted == SPAN}
        for role, column in corpus.columns.items():
            try:
                value = lookup.find(column, values)
            except (KeyError, TemplateError) as error:
                value = None
                if isinstance(error, TemplateError):
                    problem = problem or f"{role}: {error}"
                elif role not in spare:
                    problem = problem or f"row has no column {error.args[0]!r}"
            if value is None and role in spare:
                fields[role] = spare[role]
            else:
                fields[role], wrong = _checked(role, value, corpus.types.get(role, "any"))
                problem = problem or wrong
        group = _name(values, corpus.group_column, lookup)
        if group is None and corpus.group_column is not None:
            problem = problem or f"{corpus.group_column} is null"
        named = _name(values, corpus.id_column, lookup)
        return Row(number, default if named is None else named, fields, group, problem)


def _name(values: dict[str, Any], column: str | None, lookup: Lookup) -> str | None:
    if column is None:
        return None
    try:
        value = lookup.find(column, values)
    except KeyError:
        return None
    return None if value is None or not _encodable(value) else str(value)


def _checked(role: str, value: Any, wanted: str) -> tuple[Any, str | None]:
    """The value as its role wants it (text, list, span or any), and what is wrong with it."""
    if value is None:
        return None, f"{role} is null"
    if not _encodable(value):
        return value, f"{role} is not UTF-8"
    if wanted == "list" and isinstance(value, str):  # as CSV, which has no lists, must write them
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            return value, f"{role} is text that is not JSON: {error}"
        if not _encodable(value):
            return value, f"{role} is not UTF-8"
    if wanted == SPAN:
        return value, _wrong_span(role, value)
    if role == "label" and isinstance(value, Decimal):  # a class, or a number to be predicted
        value = int(value) if value == value.to_integral_value() else float(value)
    if wanted == "text" and not isinstance(value, str):
        return value, f"{role} is {called(value)}, not text"
    if wanted == "list" and not isinstance(value, list):
        return value, f"{role} is {called(value)}, not a list"
    return value, None


def _wrong_span(role: str, value: Any) -> str | None:
    """What is wrong with a span, which is a text or [start, end]."""
    if isinstance(value, str):
        return None if value else f"{role} is empty"
    if not isinstance(value, list):
        return f"{role} is {called(value)}, neither text nor [start, end]"
    numbers = [one for one in value if isinstance(one, int) and not isinstance(one, bool)]
    if len(value) != 2 or len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        return f"{role} is {escaped(str(value), 60)}, which is no [start, end] with 0 ≤ start < end"
    return None


def _encodable(value: Any) -> bool:
    """Whether all text in it can be written as UTF-8, which lone surrogates cannot; JSON, too, can spell those."""
    if isinstance(value, str):
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            return False
    elif isinstance(value, dict):
        return all(_encodable(part) for pair in value.items() for part in pair)
    elif isinstance(value, list):
        return all(_encodable(part) for part in value if not isinstance(part, int))
    return True


def called(value: Any) -> str:
    """What a value is, in words."""
    numbers = {int: "a number", float: "a number", Decimal: "a number"}
    names = {**numbers, bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
