"""Rows whose text is nearly that of a row that goes: they go with it, or the fault that they carry stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.chunks import Chunk, Corpus, Segment
from datainf_ray.corpus.rows import Row, RowReader
from datainf_ray.curate.rules import GOES, SIBLING, Decided
from datainf_ray.curate.source import read

ALIKE = 0.8  #: estimated share of word triples that near-duplicates have in common, of all that they have
_WORDS = 3  # in a row that are compared
_PERMUTATIONS, _BANDS, _SEED = 128, 32, 1
_AT_ONCE = 1024  # rows that are read at a time

_word = re.compile(r"\w+")


def require_minhash() -> Any:
    """The library that compares texts. Raises `RequestError` where it is not installed."""
    try:
        import rensa
    except ImportError:
        missing = "needs a package that is not installed"
        raise RequestError("--near-duplicates", None, missing, "pip install 'datainf-ray[curate]'") from None
    return rensa


def add_siblings(decided: Decided, corpus: Corpus) -> None:
    """Let the near-duplicates of the rows that go by the rule go with them, and note of which row each is one.

    Two passes over the corpus; memory for the rows that go by the rule.
    """
    rensa = require_minhash()
    index = rensa.RMinHashLSH(threshold=ALIKE, num_perm=_PERMUTATIONS, num_bands=_BANDS)
    known: dict[int, Any] = {}
    for row in _some(corpus, np.flatnonzero(decided.fate == GOES)):
        pieces = _pieces(row.fields)
        if pieces:
            known[row.row] = _hash(rensa, pieces)
            index.insert(row.row, known[row.row])
    if not known:
        return
    for row in read(corpus):
        if decided.fate[row.row] == GOES or not (pieces := _pieces(row.fields)):
            continue
        mine = _hash(rensa, pieces)
        like = [one for one in sorted(index.query(mine)) if mine.jaccard(known[one]) >= ALIKE]
        if like:
            decided.fate[row.row] = SIBLING
            decided.siblings[row.row] = like[0]


def _some(corpus: Corpus, rows: np.ndarray) -> Iterator[Row]:
    """These rows of a corpus, which are in order."""
    starts = np.concatenate([[0], np.cumsum([file.rows for file in corpus.files])])
    reader = RowReader(corpus)
    try:
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            files = np.searchsorted(starts, some, side="right") - 1
            for row, file in zip(some.tolist(), files.tolist(), strict=True):
                at = row - int(starts[file])
                yield reader.read(Chunk(0, row, (Segment(file, at, at + 1),)))[0]
    finally:
        reader.close()


def _hash(rensa: Any, pieces: list[str]) -> Any:
    made = rensa.RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    made.update(pieces)
    return made


def _pieces(fields: dict[str, Any]) -> list[str]:
    """What is compared of a row: every three words that follow on one another; a shorter text as it is."""
    words = _word.findall(" ".join(_texts(fields)).lower())
    if len(words) <= _WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(words[at : at + _WORDS]) for at in range(len(words) - _WORDS + 1)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list) and not (value and isinstance(value[0], int)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, list):
        yield " ".join(map(str, value))  # token ids
