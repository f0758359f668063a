"""Pictures that lie beside the rows which name them: they belong to the corpus as the rows do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options, persistently, reason, store_of
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import Chunk, Corpus, Segment, plan_corpus
from datainf_ray.corpus.columns import Takes
from datainf_ray.corpus.files import FOLDER, SourceFile
from datainf_ray.corpus.named import names_in_table
from datainf_ray.corpus.pictures import PICTURE, folder_of, marks_of, path_beside, place_in
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
    """The names of files that the rows of one file of a corpus have for pictures; none of rows that have the picture
    itself, or nothing that is one.
    """
    return (name for _, name in named_pictures(corpus, number))


def named_pictures(corpus: Corpus, number: int) -> Iterator[tuple[int, str]]:
    """The rows of one file of a corpus that name a picture, by their numbers in it, with the names."""
    file = corpus.files[number]
    for role, wanted in corpus.types.items():
        if wanted == PICTURE and file.rows and file.format != FOLDER:
            in_table = None if file.format in TEXT_FORMATS else names_in_table(file, corpus.columns[role])
            yield from _read(corpus, number, role) if in_table is None else in_table


def _read(corpus: Corpus, number: int, role: str) -> Iterator[tuple[int, str]]:
    """What rows have for a picture where it is text, or anything but bytes."""
    plain = replace(
        corpus,
        columns={role: corpus.columns[role]},
        types={role: PICTURE},
        kind="any",
        id_column=None,
        group_column=None,
        made=None,
    )
    with closing(RowReader(plain, pictures=False)) as reader:
        rows = corpus.files[number].rows
        for start in range(0, rows, _PORTION):
            segment = Segment(number, start, min(rows, start + _PORTION))
            for at, row in enumerate(reader.read(Chunk(0, plain.number_of(segment), (segment,))), start):
                name = place_in(row.fields.get(role))
                if name is not None:
                    yield at, name


def _marks(file: SourceFile, names: list[str]) -> list[bytes]:
    """A line of each picture that is there: its name, its size, and what changes when its content does."""
    fs, path = store_of(file.path, file.options)
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
    paths = [one for one in (path_beside(name, file) for name in names) if one is not None]
    return [] if protocols & _UNLISTED else marks_of(fs, folder_of(fs, path, file), paths)
