"""What a row says, for people: its texts in order, each with who says it, in whole or with their middles cut out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

ROW_BYTES = 64 * 1024  #: the most that is kept of a row's text, in UTF-8
_ALL_BYTES = 128 * 2**20  # the most of many rows together, which are in memory at a time
_FEWEST = 256  # bytes of a row that are kept, however many rows there are


class Passage(NamedTuple):
    """A text of a row.

    Example: `Passage("user", "Which one?")`, `Passage("assistant", "The first.", answer=True)`.
    """

    role: str  #: a role of the row (text, prompt, …), or who speaks in a talk
    text: str
    answer: bool = False  #: it belongs to what the model is to say, and not to what it is asked
    cut: int = 0  #: characters that its middle has had, where `text` has a mark


def pair(prompt: str, completion: str) -> list[Passage]:
    """What a row of a prompt and its completion says."""
    return [Passage("prompt", prompt), Passage("completion", completion, answer=True)]


def room_for(rows: int) -> int:
    """The bytes that each of so many rows may keep, so that all of them fit into memory."""
    return max(_FEWEST, min(ROW_BYTES, _ALL_BYTES // max(rows, 1)))


def shortened(passages: Sequence[Passage], most: int) -> list[Passage]:
    """The passages in at most `most` bytes of UTF-8, but for marks: long ones lose their middles, between characters.

    Short ones stay whole, and what they leave over is for the long ones. A passage that was cut before is cut further.
    """
    sizes = [len(passage.text.encode()) for passage in passages]
    if sum(sizes) <= most:
        return list(passages)
    return [_shortened(one, room) for one, room in zip(passages, shares(sizes, most), strict=True)]


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """What each gets of `room`: what it wants, or an equal part of what those leave who want less."""
    given = [0] * len(wanted)
    left = room
    for done, place in enumerate(sorted(range(len(wanted)), key=lambda k: wanted[k])):
        given[place] = min(wanted[place], left // (len(wanted) - done))
        left -= given[place]
    return given


def _mark(cut: int) -> str:
    return f" […{cut:,} characters…] "


def _shortened(passage: Passage, most: int) -> Passage:
    data = passage.text.encode()
    if len(data) <= most:
        return passage
    head = data[: most - most // 2].decode(errors="ignore")
    tail = data[len(data) - most // 2 :].decode(errors="ignore")
    before = len(_mark(passage.cut)) if passage.cut else 0
    cut = passage.cut + len(passage.text) - len(head) - len(tail) - before
    return passage._replace(text=f"{head}{_mark(cut)}{tail}", cut=cut)


def clean(passages: Iterable[Passage]) -> list[Passage]:
    """The passages as they can be written: halves of surrogate pairs, which UTF-8 has not, as question marks."""
    return [one._replace(role=encodable(one.role), text=encodable(one.text)) for one in passages]


def encodable(text: str) -> str:
    """A text as UTF-8 can have it: a question mark in place of each half of a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def as_json(passages: Sequence[Passage]) -> str:
    """As texts.parquet has them: a list of objects of role and text, with answer and cut where they say something."""
    return json.dumps([_object(passage) for passage in passages], ensure_ascii=False)


def _object(passage: Passage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": passage.role, "text": passage.text}
    if passage.answer:
        found["answer"] = True
    if passage.cut:
        found["cut"] = passage.cut
    return found


def from_json(text: str | None) -> list[Passage]:
    """The inverse of `as_json`; none where there is no text."""
    found: list[Mapping[str, Any]] = json.loads(text) if text else []
    return [Passage(one["role"], one["text"], one.get("answer", False), one.get("cut", 0)) for one in found]
