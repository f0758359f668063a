"""A row's text on one short line, for tables and reports. Rows are hostile input: nothing unprintable gets through."""

from __future__ import annotations

import re

LENGTH = 300
ARROW = " ⟶ "

# Control characters, halves of surrogate pairs, and what turns the direction of the text around it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def fold(text: str, length: int = LENGTH) -> str:
    """At most `length` characters of `text`: runs of whitespace as one space, no control characters, … where cut."""
    head = text.lstrip()[: 8 * length]
    line = " ".join(_UNPRINTABLE.sub("", " ".join(head.split())).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def fold_pair(first: str, second: str, length: int = LENGTH) -> str:
    """`first ⟶ second` in at most `length` characters: half for each, and what one leaves over for the other."""
    room = length - len(ARROW)
    first, second = fold(first, room), fold(second, room)
    half = room // 2
    first = fold(first, max(half, room - len(second)))
    return f"{first}{ARROW}{fold(second, room - len(first))}".strip()
