"""Class labels: what a value in the label's column stands for, and the check that all of them fit the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.chunks import Chunk, Corpus, Segment
from datainf_ray.corpus.files import SourceFile, open_seekable
from datainf_ray.corpus.rows import RowReader

#: What says that a row has no label: as GLUE's unlabelled rows have it, and what PyTorch's losses leave out.
UNLABELLED = (-1, -100)

_FILES, _ROWS = 20, 1000  # where the labels themselves are looked at: so many files, and rows of each


def parse_label(value: Any, num_labels: int, label2id: Mapping[str, int] | None) -> int | float:
    """The class 0..num_labels-1 that `value` means: a number, a name in `label2id` or digits.

    With one label the task is regression, and the value any finite number. Raises ValueError with what is wrong; −1 and
    −100 say of a class that there is none.
    """
    if num_labels == 1:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"label {value!r} is not a number") from None
        if not math.isfinite(number):
            raise ValueError(f"label {value!r} is not finite")
        return number
    names = label2id or {}
    if unlabelled(value, names):
        raise ValueError(f"label {value!r} says that there is none")
    if isinstance(value, str):
        if value in names:
            return names[value]
        if not value.strip().isdecimal():
            listed = ", ".join(list(names)[:10])
            raise ValueError(f"label {value!r} is none of the model's" + (f", which are {listed}" if listed else ""))
        index = int(value)
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        index = int(value)
    else:
        raise ValueError(f"label {value!r} is no class number or name")
    if not 0 <= index < num_labels:
        raise ValueError(f"label {value!r} is not in 0..{num_labels - 1}, the model's {num_labels} labels")
    return index


def unlabelled(value: Any, names: Mapping[str, int]) -> bool:
    """Whether a value in the column of a class' label says that the row has none."""
    if isinstance(value, str):  # as CSV has numbers
        return value not in names and value.strip() in map(str, UNLABELLED)
    return isinstance(value, int | float) and value in UNLABELLED


def check_labels(corpus: Corpus, num_labels: int, label2id: Mapping[str, int] | None, key: str) -> None:
    """Raises `RequestError` naming `key` and the place where a label does not fit the model.

    Looks at the least and the greatest value of every Parquet file that keeps them for a column of numbers, and at
    the first 1,000 rows of the first 20 other files. What lies beyond, and rows without a label, which −1 and −100 say
    too, get a status.
    """
    column = corpus.columns.get("label")
    if column is None:
        return
    for where, value in _labels(corpus, column):
        if num_labels > 1 and unlabelled(value, label2id or {}):
            continue
        try:
            parse_label(value, num_labels, label2id)
        except ValueError as error:
            raise RequestError(f"{key}.columns.label", column, f"in {where}: {error}") from None


def _labels(corpus: Corpus, column: str) -> Iterator[tuple[str, Any]]:
    with ThreadPoolExecutor(16) as pool:
        extremes = list(pool.map(lambda file: _extremes(file, column), corpus.files))
    others = []
    for index, (file, values) in enumerate(zip(corpus.files, extremes, strict=True)):
        if values is None and file.rows:
            others.append(index)
        yield from ((file.path, value) for value in values or ())
    reader = RowReader(corpus)
    for index in others[:_FILES]:
        start = Segment(index, 0, min(_ROWS, corpus.files[index].rows))
        for row in reader.read(Chunk(0, 0, (start,))):
            value = row.fields.get("label")
            if row.problem is None and value == value:  # NaN is how pandas says null
                yield f"row {row.id}", value
    reader.close()


def _extremes(file: SourceFile, column: str) -> list[Any] | None:
    """The least and the greatest number in a Parquet file's column; None where the footer does not tell."""
    if file.format != "parquet" or not file.rows:
        return None
    with open_seekable(file) as source:
        meta = pq.ParquetFile(source).metadata
        index = next((i for i in range(meta.num_columns) if meta.schema.column(i).path == column), None)
        if index is None:
            return None
        values: list[Any] = []
        for group in range(meta.num_row_groups):
            statistics = meta.row_group(group).column(index).statistics
            if statistics is None or not statistics.has_min_max:
                return None
            values += [statistics.min, statistics.max]
    return [min(values), max(values)] if all(isinstance(value, int | float) for value in values) else None
