"""Which texts are nearly the same: one rule for the rows that `datainf curate`, `datainf show` and the report name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from datainf_ray.common.errors import RequestError

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


class Texts:
    """Texts by number, of which those that are nearly the same as another are found at once.

    Raises `RequestError` where the library that compares them is not installed.
    """

    def __init__(self) -> None:
        self._rensa = require_minhash()
        self._index = self._rensa.RMinHashLSH(threshold=ALIKE, num_perm=_PERMUTATIONS, num_bands=_BANDS)
        self._known: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, number: int, pieces: list[str]) -> None:
        """Add one by its `pieces`; one without any is like no other, and left out."""
        if pieces:
            self._known[number] = self._hash(pieces)
            self._index.insert(number, self._known[number])

    def like(self, pieces: list[str], most: int | None = None) -> dict[int, float]:
        """Those that are nearly the same, by number, with the estimated share that they have in common.

        Of very many only those with the `most` smallest numbers are looked at.
        """
        if not pieces:
            return {}
        mine = self._hash(pieces)
        shares = {one: mine.jaccard(self._known[one]) for one in sorted(self._index.query(mine))[:most]}
        return {one: share for one, share in shares.items() if share >= ALIKE}

    def _hash(self, pieces: list[str]) -> Any:
        made = self._rensa.RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        made.update(pieces)
        return made


def pieces_of(texts: Iterable[str]) -> list[str]:
    """What is compared: every three words that follow on one another; a shorter text as it is."""
    words = _word.findall(" ".join(texts).lower())
    if len(words) <= _WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(words[at : at + _WORDS]) for at in range(len(words) - _WORDS + 1)]


def texts_in(value: Any) -> Iterator[str]:
    """The texts within a row's fields, and its token ids as one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list) and not (value and isinstance(value[0], int)):
        for part in value:
            yield from texts_in(part)
    elif isinstance(value, list):
        yield " ".join(map(str, value))  # token ids
