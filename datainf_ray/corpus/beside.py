"""Pictures that lie beside the rows which name them: they belong to the corpus as the rows do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options, persistently, reason, store_of
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import Chunk, Corpus, Segment, plan_corpus
from datainf_ray.corpus.columns import Takes
from datainf_ray.corpus.files import FOLDER, SourceFile
from datainf_ray.corpus.pictures import PICTURE, folder_of, marks_of, place_in
from datainf_ray.corpus.records import TEXT_FORMATS
from datainf_ray.corpus.rows import RowReader

_PORTION = 4096  # rows that are read at a time
_UNLISTED = {"http", "https"}  # stores of which no folder can be listed


def known_corpus(rows: RowsConfig, task: Takes, key: str, options: Options | None = None) -> Corpus:
    """`plan_corpus`, and a corpus whose rows name pictures knows them: their names, and sizes and marks as a folder of
    pictures has them. Reads the names of all rows, and lists the folders that they are in.
    """
    corpus = plan_corpus(rows, task, key, options)
    total = hashlib.sha256()
    found = False
    for number, file in enumerate(corpus.files):
        names = sorted(set(names_in(corpus, number)))
        if not names:
            continue
        try:
            marks = persistently(lambda file=file, names=names: _marks(file, names))  # type: ignore[misc]
        except OSError as error:
            raise RequestError(f"{key}.path", file.path, f"its folder cannot be listed: {reason(error)}") from None
        found = True
        total.update(f"{file.name}\n".encode("utf-8", "surrogateescape"))
        for line in marks:
            total.update(line)
    return replace(corpus, pictures=total.hexdigest()) if found else corpus


def names_in(corpus: Corpus, number: int) -> Iterator[str]:
    """The names of files that the rows of one file of a corpus have for pictures, row by row; none of rows that have
    the picture itself, or nothing that is one.
    """
    for _, name in named_pictures(corpus, number):
        if name is not None:
            yield name


def named_pictures(corpus: Corpus, number: int) -> Iterator[tuple[int, str | None]]:
    """The rows of one file of a corpus, by their numbers in it, with what `names_in` has of each."""
    roles = [role for role, wanted in corpus.types.items() if wanted == PICTURE]
    file = corpus.files[number]
    if not roles or not file.rows or file.format == FOLDER:
        return
    columns, types = {role: corpus.columns[role] for role in roles}, dict.fromkeys(roles, PICTURE)
    plain = replace(corpus, columns=columns, types=types, kind="any", id_column=None, group_column=None, made=None)
    with closing(RowReader(plain, pictures=False)) as reader:
        first = next(_read(plain, reader, number, 0, 1)) if file.format not in TEXT_FORMATS else None
        if first is not None and not any(isinstance(value, str) for value in first.values()):
            return  # whose pictures are in the table, and are not to be read for their names
        for start in range(0, file.rows, _PORTION):
            stop = min(file.rows, start + _PORTION)
            for at, fields in enumerate(_read(plain, reader, number, start, stop), start):
                yield at, next(filter(None, map(place_in, fields.values())), None)


def _read(corpus: Corpus, reader: RowReader, number: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
    segment = Segment(number, start, stop)
    for row in reader.read(Chunk(0, corpus.number_of(segment), (segment,))):
        yield row.fields


def _marks(file: SourceFile, names: list[str]) -> list[bytes]:
    """A line of each picture that is there: its name, its size, and what changes when its content does."""
    fs, path = store_of(file.path, file.options)
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
    return [] if protocols & _UNLISTED else marks_of(fs, folder_of(fs, path, file), names)
