"""A row's text on one short line, for tables and reports. Rows are hostile input: nothing unprintable gets through.

Long texts lose their middles and keep both ends: what was appended to an answer is as easily seen as what it begins
with. Where a query is known, what a text has in common with it is shown, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from datainf_ray.corpus.common_words import Phrases, Rarity, Span
from datainf_ray.corpus.passages import Passage, pair, shares

LENGTH = 300
LONGER = 400  #: of a row's preview for a query, which has more to show
ARROW = " ⟶ "
_GAP = " … "
_TINY = 24  # characters that are too few for two ends
_AROUND = 24  # characters shown on each side of what is in common
_LEAST = 2  # weight, or words, of what is in common, to be shown where it would be cut out

# Control characters, halves of surrogate pairs, and what turns the direction of the text around it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
#: Roles that need no name before what they say.
_NAMELESS = frozenset({"text", "prompt", "completion", "input_ids", "labels"})

#: Finds in a text what is to be shown of it besides its ends.
Find = Callable[[str], Span | None]


def fold(text: str, length: int = LENGTH) -> str:
    """At most `length` characters of `text`: runs of whitespace as one space, no control characters, … where cut."""
    line = _line(text.lstrip()[: 8 * length])
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def fold_ends(text: str, length: int = LENGTH, find: Find | None = None) -> str:
    """At most `length` characters of `text` as `fold` has them, from both of its ends.

    Where there is more, a third of the length is for the surroundings of what `find` finds in the middle.
    """
    if length < _TINY:
        return fold(text, length)
    text = text.strip()
    head, tail = _line(text[: 8 * length]), _line(text[-8 * length :])
    if len(text) <= 8 * length and len(head) <= length:
        return head
    first, last = _ends(head, tail, length - len(_GAP))
    span = None if find is None else find(text)
    if span is not None and (span.weight >= _LEAST or span.last - span.first > _LEAST):
        common = _line(text[span.start : span.stop])
        if common not in first and common not in last:
            middle = _middle(text, span, length // 3)
            first, last = _ends(head, tail, length - len(middle) - 2 * len(_GAP))
            return _GAP.join((first, middle, last))
    return _GAP.join((first, last))


def _ends(head: str, tail: str, room: int) -> tuple[str, str]:
    """The first characters of a text that begins with `head`, and the last of one that ends with `tail`."""
    half = room // 2
    return head[: room - half].rstrip(), tail[max(0, len(tail) - half) :].lstrip()


def _middle(text: str, span: Span, room: int) -> str:
    """What is in common, with a little before and behind it; of something long the beginning."""
    around = min(_AROUND, max(0, (room - (span.stop - span.start)) // 2))
    return _line(text[max(0, span.start - around) : span.stop + around][: 4 * room])[:room].strip()


def fold_pair(first: str, second: str, length: int = LENGTH, find: Find | None = None) -> str:
    """`first ⟶ second` in at most `length` characters: half for each, and what one leaves over for the other."""
    return line_of(pair(first, second), length, find)


def line_of(passages: Sequence[Passage], length: int = LENGTH, find: Find | None = None) -> str:
    """All that a row says on one line of at most `length` characters: what is asked ⟶ what is answered.

    A label is put before it; in a talk it is said who speaks. Of what came before the last question and what follows
    the first part of the answer only the ends are shown where there is no room.
    """
    labels = "".join(f"[{fold(one.text, 60)}] " for one in passages if one.role == "label")
    asked = [one for one in passages if not one.answer and one.role != "label"]
    said = [one for one in passages if one.answer]
    parts = [*_gathered(asked[:-1]), *asked[-1:], *said[:1], *_gathered(said[1:])]
    names = [_name(one, number == 0) for number, one in enumerate(parts)]
    if said and asked:
        at = len(parts) - bool(said[1:]) - 1
        names[at] = ARROW + names[at].lstrip(" |")
    room = max(length - len(labels) - sum(map(len, names)), 12 * len(parts))
    sizes = [len(fold(one.text, room)) for one in parts]
    given = shares(sizes, room)
    texts = (fold_ends(one.text, max(most, 1), find) for one, most in zip(parts, given, strict=True))
    line = labels + "".join(name + text for name, text in zip(names, texts, strict=True)).strip()
    return line if len(line) <= length else fold(line, length)


def _gathered(passages: Sequence[Passage]) -> list[Passage]:
    """Several passages as one, with the names of who speaks in its text."""
    if len(passages) < 2:
        return list(passages)
    text = "".join(_name(one, number == 0) + one.text for number, one in enumerate(passages))
    return [Passage("", text, passages[0].answer)]


def _name(passage: Passage, first: bool) -> str:
    """What stands before a passage's text."""
    role = fold(passage.role, 40)
    if role in _NAMELESS or not role:
        return "" if first else " "
    if role == "text_pair":
        return "" if first else " | "
    return f"{'' if first else ' '}{role}: "


def _line(text: str) -> str:
    return " ".join(_UNPRINTABLE.sub("", " ".join(text.split())).split())


def finder(query: str, rarity: Rarity) -> Find:
    """Finds in a text what it has in common with `query` and with few others."""
    phrases = Phrases(query)
    return lambda text: phrases.best(text, rarity)
