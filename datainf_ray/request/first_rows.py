"""The rows that are looked at before anything is started: how long they are, and whether any of them can be used."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.words import counted
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import Chunk, Corpus, Segment
from datainf_ray.corpus.preview import fold
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.tokens import Encoder, Example
from datainf_ray.runs.schemas import OK

_FIRST = 64  # rows that are always looked at
_PLACES, _ROWS = 16, 4  # where none of those can be used: so many places more, and rows at each


@dataclass(frozen=True)
class Sampled:
    """What the rows that were looked at are like."""

    rows: int  #: how many there were
    unusable: int  #: of which so many have no loss
    cut: int  #: rows that have lost tokens to max_length, usable or not
    first: str  #: the first unusable one and why, "row 3: unreadable: text is null"; "" if there is none


def sampled(examples: Sequence[Example]) -> Sampled:
    """What these rows are like."""
    bad = [example for example in examples if example.status != OK]
    cut = sum(example.tokens_cut > 0 for example in examples)
    return Sampled(len(examples), len(bad), cut, _said(bad[0]) if bad else "")


def first_rows(encoder: Encoder, corpus: Corpus, asked: RowsConfig, key: str) -> list[Example]:
    """The corpus' first rows; where none of them can be used, some from all over the corpus behind them.

    Raises `RequestError` that names `key`'s path, or its max_length where that alone is at fault, if not one of all
    these rows can be used.
    """
    reader = RowReader(corpus)
    try:
        examples = encoder.encode(reader.read(_chunk(corpus, range(min(_FIRST, corpus.rows)))))
        if not _usable(examples):
            for rows in _spread(corpus.rows):
                examples += encoder.encode(reader.read(_chunk(corpus, rows)))
    except OSError as error:
        raise RequestError(f"{key}.path", None, f"rows cannot be read: {one_line(error)[:500]}") from None
    finally:
        reader.close()
    if not _usable(examples):
        count = len(examples)
        which = f"its {counted(count, 'row')}" if count == corpus.rows else f"the {count} rows that were looked at"
        found = f"none of {which} can be used: {_said(examples[0])}"
        if asked.max_length is not None and all(example.tokens_cut for example in examples):
            raise RequestError(f"{key}.max_length", asked.max_length, found, "use a larger one")
        raise RequestError(f"{key}.path", ", ".join(asked.paths), found)
    return examples


def _usable(examples: Sequence[Example]) -> bool:
    return any(example.status == OK for example in examples)


def _said(example: Example) -> str:
    """Which row it is, and why it has no loss."""
    return f"row {example.row}: {example.status}" + (f": {fold(example.detail, 200)}" if example.detail else "")


def _spread(rows: int) -> list[range]:
    """Row numbers behind the first ones, at places that are evenly apart; the last row is one of them."""
    left = rows - _FIRST
    if left <= _PLACES * _ROWS:
        return [range(_FIRST, rows)] if left > 0 else []
    starts = (_FIRST + place * (left - _ROWS) // (_PLACES - 1) for place in range(_PLACES))
    return [range(start, start + _ROWS) for start in starts]


def _chunk(corpus: Corpus, rows: range) -> Chunk:
    """Rows that follow one another in the corpus, wherever they lie."""
    ends = list(itertools.accumulate(file.rows for file in corpus.files))
    segments, row = [], rows.start
    while row < rows.stop:
        index = bisect.bisect_right(ends, row)
        begin = ends[index] - corpus.files[index].rows
        stop = min(rows.stop, ends[index])
        segments.append(Segment(index, row - begin, stop - begin))
        row = stop
    return Chunk(0, rows.start, tuple(segments))
