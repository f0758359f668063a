"""Which tokens stand for which characters of a text, by the offsets that a fast tokenizer gives."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence

Span = tuple[int, int]  #: start..stop-1, of characters or of tokens


class Offsets:
    """Where each token of a text begins and ends, and which tokens a span of characters has.

    A token of whitespace of which offsets leave nothing has what stands before it. A token that a tokenizer adds to a
    text, as BOS, stands for no character.
    """

    def __init__(self, offsets: Sequence[Span]) -> None:
        """`offsets` are (start, stop) in characters, one for each token."""
        self._offsets = offsets

    def first_beyond(self, position: int) -> int:
        """The first token that ends behind a character."""
        return bisect.bisect_right(self._edges[1], position)

    def first_from(self, position: int) -> int:
        """The first token that begins at a character or behind it."""
        return bisect.bisect_left(self._edges[0], position)

    def tokens(self, start: int, stop: int) -> Span:
        """The tokens that have a character of start..stop-1; an empty span of tokens where none has."""
        begin = self.first_beyond(start)
        return begin, max(begin, self.first_from(stop))

    @functools.cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """Where each token begins and ends. Offsets that leave out whitespace may leave nothing of a token."""
        starts, stops, reached = [], [], 0
        for start, stop in self._offsets:
            if (start, stop) == (0, 0):  # a token that was added, before the text or behind it
                starts.append(reached)
            else:
                starts.append(min(start, reached) if start == stop else start)
            reached = max(reached, stop)
            stops.append(reached)
        return list(itertools.accumulate(starts, max)), stops
