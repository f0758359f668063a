"""Rows whose text is nearly that of a row that goes: they go with it, or the fault that they carry stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.pictures import PICTURE
from datainf_ray.corpus.rows import Row
from datainf_ray.curate.content import some_rows
from datainf_ray.curate.rules import GOES, SIBLING, Decided
from datainf_ray.curate.source import read

ALIKE = 0.8  #: estimated share of word triples that near-duplicates have in common, of all that they have
_WORDS = 3  # in a row that are compared
_PERMUTATIONS, _BANDS, _SEED = 128, 32, 1

_word = re.compile(r"\w+")


def require_minhash() -> Any:
    """The library that compares texts. Raises `RequestError` where it is not installed."""
    try:
        import rensa
    except ImportError:
        missing = "needs a package that is not installed"
        raise RequestError("--near-duplicates", None, missing, "pip install 'datainf-ray[curate]'") from None
    return rensa


def _require_texts(corpus: Corpus) -> None:
    """Raises `RequestError` where rows are pictures: many may have one caption, and not be alike at all."""
    if PICTURE in corpus.types.values():
        problem = "compares texts, and pictures of the same caption need not be alike"
        raise RequestError("--near-duplicates", None, problem)


def add_siblings(decided: Decided, corpus: Corpus) -> None:
    """Let the near-duplicates of the rows that go by the rule go with them, and note of which row each is one.

    Two passes over the corpus; memory for the rows that go by the rule. Raises `RequestError` where rows are pictures.
    """
    rensa = require_minhash()
    _require_texts(corpus)
    index = rensa.RMinHashLSH(threshold=ALIKE, num_perm=_PERMUTATIONS, num_bands=_BANDS)
    known: dict[int, Any] = {}
    for row in some_rows(corpus, np.flatnonzero(decided.fate == GOES)):
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


def alike(corpus: Corpus, row: Row) -> list[dict[str, Any]]:
    """The other rows of nearly the same text: row, id, and `alike`, the estimated share, the most alike first.

    A pass over the corpus. Raises `RequestError` where the library is not installed, or rows are pictures.
    """
    rensa = require_minhash()
    _require_texts(corpus)
    pieces = _pieces(row.fields)
    if not pieces:
        return []
    mine, many, found = _hash(rensa, pieces), len(set(pieces)), list[dict[str, Any]]()
    for other in read(corpus):
        theirs = _pieces(other.fields) if other.row != row.row else []
        if not ALIKE / 2 <= len(set(theirs)) / many <= 2 / ALIKE:  # which of most rows is enough to know
            continue
        share = mine.jaccard(_hash(rensa, theirs))
        if share >= ALIKE:
            found.append({"row": other.row, "id": other.id, "alike": share})
    return sorted(found, key=lambda one: (-one["alike"], one["row"]))


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
