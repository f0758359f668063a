"""What two texts have in common: the words that stand in both, one after the other, and are rare elsewhere.

A suffix automaton of one text's words (Blumer et al., 1985) gives, for every word of the other, the longest sequence
that ends there and is also in the first: time is linear in both texts, whatever is in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Scripts that are written without spaces go by the character.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_ALONE}]|[^\\W{_ALONE}]+")
_LONGEST = 64  # characters of a word that tell it from others


class Span(NamedTuple):
    """Words `first` to `last` - 1 of a text, at its characters `start` to `stop` - 1."""

    start: int
    stop: int
    first: int
    last: int
    weight: int  #: the sum of its words' weights


class Rarity:
    """How rare words are among some texts: `weight` is the whole part of log2(texts / texts that have the word)."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = 0
        self._having: Counter[str] = Counter()
        for text in texts:
            self.texts += 1
            self._having.update({word for word, _, _ in words_of(text)})

    def weight(self, word: str) -> int:
        """0 for a word that more than half of the texts have."""
        having = self._having.get(word, 1)
        return (self.texts // having).bit_length() - 1 if self.texts > having else 0


def words_of(text: str) -> Iterator[tuple[str, int, int]]:
    """The words of a text in order, in one case, and where each begins and ends."""
    for found in _WORD.finditer(text):
        yield found[0][:_LONGEST].casefold(), found.start(), found.end()


class Phrases:
    """The sequences of words of a text, to look for them in others."""

    def __init__(self, text: str) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._link, self._length = [-1], [0]
        last = 0
        for word, _, _ in words_of(text):
            last = self._extended(last, word)

    def _extended(self, last: int, word: str) -> int:
        """The state of all that was read with one word more, behind state `last`."""
        new = self._state(self._length[last] + 1, {}, 0)
        at = last
        while at >= 0 and word not in self._next[at]:
            self._next[at][word] = new
            at = self._link[at]
        if at < 0:
            return new
        there = self._next[at][word]
        if self._length[there] == self._length[at] + 1:
            self._link[new] = there
            return new
        copy = self._state(self._length[at] + 1, dict(self._next[there]), self._link[there])
        while at >= 0 and self._next[at].get(word) == there:
            self._next[at][word] = copy
            at = self._link[at]
        self._link[there] = self._link[new] = copy
        return new

    def _state(self, length: int, following: dict[str, int], link: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._link.append(link)
        return len(self._next) - 1

    def common(self, text: str, rarity: Rarity | None = None) -> Iterator[Span]:
        """For every word of `text` that is in this text the longest common sequence that ends with it."""
        starts, weights = [], [0]
        state = matched = 0
        for number, (word, start, stop) in enumerate(words_of(text)):
            starts.append(start)
            weights.append(weights[-1] + (0 if rarity is None else rarity.weight(word)))
            while state and word not in self._next[state]:
                state = self._link[state]
                matched = self._length[state]
            if word not in self._next[state]:
                continue
            state, matched = self._next[state][word], matched + 1
            first = number + 1 - matched
            yield Span(starts[first], stop, first, number + 1, weights[-1] - weights[first])

    def best(self, text: str, rarity: Rarity | None = None) -> Span | None:
        """The common sequence of the most weight; of equals the longest, then the first. None where there is none."""
        return max(
            self.common(text, rarity), key=lambda span: (span.weight, span.last - span.first, -span.start), default=None
        )
