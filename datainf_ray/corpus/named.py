"""The names of pictures in a table whose rows have {bytes, path}, as `datasets` writes them: of those without bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.corpus.arrow_values import parse_batch
from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.lookup import Lookup, Path
from datainf_ray.corpus.tables import TableSource

_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)


def names_in_table(file: SourceFile, column: str) -> Iterator[tuple[int, str]] | None:
    """The rows whose pictures are files, by number in a file of Parquet or Arrow, with the name of each; None where
    they must be read to know, as those of a column of text.

    Bytes are pictures, and name nothing, as do those of {bytes, path}. Of a group of Parquet whose rows all have them
    nothing is read, and of an Arrow file on this machine no bytes are looked at. A store gives an Arrow column whole:
    there a file is left where every row of its first batch has bytes. At most a batch is held.
    """
    path = next(iter(Lookup(file, [column]).paths), None)
    if path is None:  # the name of a folder
        return None
    with closing(TableSource(file, [path])) as source:
        kind = source.schema().field(path[0]).type
    for key in path[1:]:
        kind = kind.field(key).type
    if pa.types.is_struct(kind):
        fields = {field.name for field in kind}
        return _without_bytes(file, path, "bytes" in fields) if "path" in fields else iter(())
    return iter(()) if any(check(kind) for check in _BYTES) else None


def _without_bytes(file: SourceFile, path: Path, has_bytes: bool) -> Iterator[tuple[int, str]]:
    leaf, name = (*path, "bytes"), (*path, "path")
    with closing(TableSource(file, [leaf, name] if has_bytes else [name])) as source:
        for start, stop in zip(file.groups, (*file.groups[1:], file.rows), strict=True):
            if has_bytes and source.nulls(start, leaf) == 0:
                continue
            for rows, piece in source.pieces(start, stop):
                if isinstance(piece, Exception):
                    continue  # rows that cannot be decoded name nothing
                column = piece.column(path[0])
                names = pc.struct_field(column, [*name[1:]])
                absent = pc.struct_field(column, [*leaf[1:]]).is_null() if has_bytes else names.is_valid()
                if rows.start == 0 and source.far and not pc.any(absent).as_py():
                    return
                wanted = pc.and_(absent, names.is_valid())
                found = parse_batch(pa.RecordBatch.from_arrays([names.filter(wanted)], ["path"]), ["path"])
                for at, one in zip(np.flatnonzero(wanted), found, strict=True):
                    if isinstance(one.values["path"], str):
                        yield rows.start + int(at), one.values["path"]
