"""Rows whose text is nearly that of a row that goes: they go with it, or the fault that they carry stays."""

from __future__ import annotations

from typing import Any

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.alike import ALIKE, Texts, pieces_of, require_minhash, texts_in
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.pictures import PICTURE
from datainf_ray.corpus.rows import Row
from datainf_ray.curate.content import some_rows
from datainf_ray.curate.rules import GOES, SIBLING, Decided
from datainf_ray.curate.source import read


def require_comparable(corpus: Corpus) -> None:
    """Raises `RequestError` where rows are pictures: many may have one caption, and not be alike at all; or where the
    library that compares texts is not installed.
    """
    if PICTURE in corpus.types.values():
        problem = "compares texts, and pictures of the same caption need not be alike"
        raise RequestError("--near-duplicates", None, problem)
    require_minhash()


def add_siblings(decided: Decided, corpus: Corpus) -> None:
    """Let the near-duplicates of the rows that go by the rule go with them, and note of which row each is one.

    Two passes over the corpus, which must be comparable (see `require_comparable`); memory for the rows that go by the
    rule.
    """
    known = Texts()
    for row in some_rows(corpus, np.flatnonzero(decided.fate == GOES)):
        known.add(row.row, pieces_of(texts_in(row.fields)))
    if not len(known):
        return
    for row in read(corpus):
        if decided.fate[row.row] == GOES:
            continue
        like = known.like(pieces_of(texts_in(row.fields)))
        if like:
            decided.fate[row.row] = SIBLING
            decided.siblings[row.row] = next(iter(like))


def alike(corpus: Corpus, row: Row) -> list[dict[str, Any]]:
    """The other rows of nearly the same text: row, id, and `alike`, the estimated share, the most alike first.

    A pass over the corpus. Raises `RequestError` where the library is not installed, or rows are pictures.
    """
    require_comparable(corpus)
    known = Texts()
    mine = pieces_of(texts_in(row.fields))
    known.add(row.row, mine)
    many, found = len(set(mine)), list[dict[str, Any]]()
    for other in read(corpus) if mine else ():
        theirs = pieces_of(texts_in(other.fields)) if other.row != row.row else []
        if not ALIKE / 2 <= len(set(theirs)) / many <= 2 / ALIKE:  # which of most rows is enough to know
            continue
        found += [{"row": other.row, "id": other.id, "alike": share} for share in known.like(theirs).values()]
    return sorted(found, key=lambda one: (-one["alike"], one["row"]))
