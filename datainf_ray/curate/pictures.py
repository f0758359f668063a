"""The pictures of a corpus that is written again: those of the rows that are written go with them into a new folder."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import PurePosixPath
from typing import IO

import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import persistently
from datainf_ray.corpus.beside import named_pictures
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.files import FOLDER, SourceFile
from datainf_ray.corpus.pictures import PictureSource, path_beside, read_beside
from datainf_ray.curate.extra import Extra, as_json
from datainf_ray.curate.lines import Stays
from datainf_ray.curate.target import Target
from datainf_ray.runs.places import Place, place_of

LISTED = "metadata.jsonl"  #: of a folder of pictures whose rows get columns
_AT_ONCE = 1024


def check_pictures(target: Target, corpus: Corpus, kind: str | None = None) -> None:
    """Raises `RequestError` where the rows of a new file would name pictures that are not beside it, or where a format
    `kind` names files of rows and there are none.
    """
    if kind in ("less", "llamafactory") and any(file.format == FOLDER for file in corpus.files):
        raise RequestError("--format", kind, "is of files of rows, and the corpus is a folder of pictures")
    if target.folder or not corpus.pictures:
        return
    (file,) = corpus.files
    read = place_of(file.path, "train.path", file.options)
    written = target.place()
    if (written.store, _folder(written)) != (read.store, _folder(read)):
        problem = f"its rows would name pictures that are elsewhere, in {file.path.rpartition('/')[0]}"
        raise RequestError(target.key, target.url, problem, "name a file there, or a folder: it gets the pictures, too")


def _folder(place: Place) -> PurePosixPath:
    return PurePosixPath(place.path).parent


def copy_named(target: Target, corpus: Corpus, number: int, stays: Stays) -> None:
    """Copy the pictures that the rows of one file name, of those rows that stay, to the same names in the new folder.

    A picture that is not there is none: its row says so in the new corpus as it did in the old one.
    """
    file = corpus.files[number]
    folder = PurePosixPath(target.named(file)).parent
    kept = stays(0, file.rows)
    for row, name in named_pictures(corpus, number):
        if kept[row]:
            _copy(target, file, name, folder)


def copy_folder(target: Target, file: SourceFile, stays: Stays, extra: Extra | None) -> None:
    """Copy the pictures of a folder that stay, with their captions; with `extra` columns the captions stand in a
    metadata.jsonl beside them, which has those columns, too.
    """
    assert file.format == FOLDER
    folder = PurePosixPath(target.named(file))
    with closing(PictureSource(file)) as source:
        if extra is None:
            for row, name in enumerate(source.names):
                if stays(row, row + 1)[0]:
                    for one in filter(None, (name, source.caption_of(name))):
                        _copy(target, file, one, folder)
            return
        with target.other(str(folder / LISTED)) as out:
            for start in range(0, file.rows, _AT_ONCE):
                _list(target, file, source, out, (start, min(file.rows, start + _AT_ONCE)), stays, extra)


def _list(
    target: Target,
    file: SourceFile,
    source: PictureSource,
    out: IO[bytes],
    rows: tuple[int, int],
    stays: Stays,
    extra: Extra,
) -> None:
    """Copy pictures, and write a line of each with its caption and more columns."""
    kept, folder = stays(*rows), PurePosixPath(target.named(file))
    more = as_json(extra.take(len(kept)).filter(pa.array(kept)))
    parsed = [one for one, stay in zip(source.read(*rows), kept, strict=True) if stay]
    for one, columns in zip(parsed, more, strict=True):
        _copy(target, file, one.values["file_name"], folder)
        known = {name: one.values[name] for name in ("file_name", "text") if name in one.values}
        line = json.dumps(known, ensure_ascii=False).encode("utf-8", "surrogateescape")  # a name may be any bytes
        out.write(line[:-1] + b", " + columns + b"}\n")


def _copy(target: Target, file: SourceFile, name: str, folder: PurePosixPath) -> None:
    path = path_beside(name, file)
    if path is None:
        return  # it lies where no picture is read, and none is written
    place = str(folder / path)
    if target.has(place):
        return  # another row has the same picture; or its name is that of a table
    try:
        data = persistently(lambda: read_beside(name, file))
    except ValueError:  # there is none
        return
    with target.other(place) as out:
        out.write(data)
