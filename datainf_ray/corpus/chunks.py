"""The corpus as it was planned: its files, its rows and the chunks they are worked on in.

A chunk is a fixed range of row numbers. It follows from the files and `chunk_rows` alone, whoever works on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options, persistently
from datainf_ray.config import QueriesConfig, RowsConfig
from datainf_ray.corpus.columns import Takes, choose_columns, require_column
from datainf_ray.corpus.files import FOLDER, SourceFile
from datainf_ray.corpus.find import find_files
from datainf_ray.corpus.lookup import names_in
from datainf_ray.corpus.pictures import PICTURE, Made
from datainf_ray.corpus.records import TEXT_FORMATS, survey_text
from datainf_ray.corpus.tables import survey_table

_THREADS = 32  # files surveyed at a time: mostly waiting for the store


@dataclass(frozen=True)
class Segment:
    """Rows start..stop-1 of one file."""

    file: int
    start: int
    stop: int


@dataclass(frozen=True)
class Chunk:
    """Rows first..first+rows-1 of the corpus: the unit of work, of retry, of commit and of resume."""

    number: int
    first: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(segment.stop - segment.start for segment in self.segments)

    def halves(self) -> tuple[Chunk, Chunk]:
        """Its first and its last rows, of the same number; for a chunk of at least two rows."""
        room = self.rows // 2
        left: list[Segment] = []
        right: list[Segment] = []
        for segment in self.segments:
            cut = min(segment.stop, segment.start + room)
            room -= cut - segment.start
            left += [replace(segment, stop=cut)] if cut > segment.start else []
            right += [replace(segment, start=cut)] if segment.stop > cut else []
        first = Chunk(self.number, self.first, tuple(left))
        return first, Chunk(self.number, self.first + first.rows, tuple(right))


@dataclass(frozen=True)
class Corpus:
    """A planned corpus: nothing of its content, only what is needed to find any row again."""

    files: tuple[SourceFile, ...]
    kind: str  #: one of the kinds of row that the task takes
    columns: dict[str, str]  #: role: column, of the roles that are used
    id_column: str | None
    group_column: str | None
    rows: int
    types: dict[str, str] = field(default_factory=dict)  #: role: text or list, what its values must be
    made: Made | None = None  #: where the rows' `image` lies, of rows that have prompts alone and it was made of them
    pictures: str = ""  #: changes when a picture does that lies beside the rows and is named by one; see `beside`

    def chunks(self, chunk_rows: int) -> list[Chunk]:
        """The rows in chunks of `chunk_rows`, in order; the last one may be smaller."""
        segments = self._segments(chunk_rows)
        return [
            Chunk(number, first, tuple(next(segments))) for number, first in enumerate(range(0, self.rows, chunk_rows))
        ]

    def number_of(self, segment: Segment) -> int:
        """The number in the corpus of a segment's first row."""
        return sum(file.rows for file in self.files[: segment.file]) + segment.start

    def fingerprint(self) -> str:
        """Sha256 of what the rows are: equal for a corpus that was only moved, different for one that was changed."""
        files = [(file.name, file.size, file.identity, file.rows) for file in self.files]
        meaning = (self.kind, sorted(self.columns.items()), self.id_column, self.group_column)
        told = self._told_by_folders()
        also = [*([told] if told else []), *([self.pictures] if self.pictures else [])]
        return hashlib.sha256(json.dumps([files, meaning, *also]).encode()).hexdigest()

    def _told_by_folders(self) -> list[dict[str, str | None]]:
        """What the files' folders say of the columns that are read from there; [] where none is."""
        asked = [c for c in (*self.columns.values(), self.id_column, self.group_column) if c is not None]
        names = {name for column in asked for name in names_in(column)}
        told = [{name: v for name, v in file.partition if name in names - {*file.columns}} for file in self.files]
        return told if any(told) else []

    def _segments(self, chunk_rows: int) -> Iterator[list[Segment]]:
        pending: list[Segment] = []
        room = chunk_rows
        for index, file in enumerate(self.files):
            start = 0
            while start < file.rows:
                stop = min(file.rows, start + room)
                pending.append(Segment(index, start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    yield pending
                    pending, room = [], chunk_rows
        if pending:
            yield pending


def plan_corpus(rows: RowsConfig, task: Takes, key: str, options: Options | None = None) -> Corpus:
    """The corpus that `rows` means to `task`, from file metadata; text files are read once to find their rows.

    `key` ("train" or "queries") is named in errors; `options` are what the files' stores are opened with. Raises
    `RequestError` where no file matches, a file cannot be read, there is no row, or a column that is needed is absent.
    """
    pictures = any(kind.type_of(role) == PICTURE for kind in task.kinds for role in kind.roles)
    listed = find_files(rows.paths, f"{key}.path", options, pictures)
    found = [replace(file, quoting=rows.quoting) for file in listed]
    if rows.quoting != "standard" and not any(file.format == "csv" for file in found):
        raise RequestError(f"{key}.quoting", rows.quoting, "there is no CSV or TSV file")
    with ThreadPoolExecutor(min(_THREADS, len(found))) as pool:
        surveyed = list(pool.map(lambda file: _survey(file, f"{key}.path"), found))
    known: dict[Any, Any] = {}  # files of one corpus share their columns: keep them once
    files = tuple(
        replace(
            file,
            columns=known.setdefault(file.columns, file.columns),
            nested=known.setdefault(("nested", file.nested), file.nested),
        )
        for file in surveyed
    )
    filled = [file for file in files if file.rows]
    if not filled:
        raise RequestError(f"{key}.path", ", ".join(rows.paths), f"no rows in {len(files)} file(s)")
    combination, columns = choose_columns(rows.columns, filled, task, key)
    group = rows.group if isinstance(rows, QueriesConfig) and rows.group != "all" else None
    for name, column in (("id", rows.id), ("group", group)):
        if column is not None:
            require_column(column, filled, f"{key}.{name}")
    types = {role: combination.type_of(role) for role in columns}
    return Corpus(files, combination.kind, columns, rows.id, group, sum(file.rows for file in files), types)


def _survey(file: SourceFile, key: str) -> SourceFile:
    if file.format == FOLDER:  # whose listing has told all
        return file
    try:
        survey = survey_text if file.format in TEXT_FORMATS else survey_table
        return persistently(lambda: survey(file))
    except Exception as error:  # stores and decoders raise errors of their own
        raise RequestError(key, file.path, f"cannot be read as {file.format}: {one_line(error)}") from None
