"""What a person reads: numbers with their noun, bytes and times; and other people's texts, which may be hostile."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

_LISTED, _NAME = 20, 60  # words that a message names, and characters of each
LENGTH = 200  #: characters of an id, a name or a label where a person reads it

#: What moves a terminal's cursor, turns the direction of a text or is not seen at all: control characters, halves of
#: surrogate pairs, marks of direction, and what has no width.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, length: int = LENGTH) -> str:
    """A text of a user's for a table, a report or a line: at most `length` characters, none of them unseen.

    Runs of whitespace become one space, and … stands where it was cut. Files for programs have the text itself.
    """
    head = text.lstrip()[: 8 * length]
    line = " ".join(_UNSEEN.sub("", " ".join(head.split())).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def visible(text: str) -> str:
    """`text` without unseen characters but for line breaks and tabs, for what stands on lines of its own."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\n\t" else "", text)


def spelled(text: str) -> str:
    """`text` on as many lines as it has, its other unseen characters written as \\x1b or \\u202e."""
    return "".join(part if part in "\n\t" else escaped(part) for part in re.split(r"([\n\t])", text))


def escaped(text: str, length: int | None = None) -> str:
    """`text` with its unseen characters written as \\n, \\x1b or \\u202e: one line; … in its middle where it is cut."""
    if length is not None and len(text) > length:
        text = f"{text[: length // 2]}…{text[len(text) - length // 2 + 1 :]}"
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON whose unseen characters are written as \\u202e, so that it may go to a terminal as it is."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNSEEN.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], text)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 worker", "2,000 rows", "3 queries" (`plural="queries"`)."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def percent(share: float) -> str:
    """A share as "0.2 %", "33.3 %" or "1.2e-05 %"; only all is "100 %", and only none "0 %"."""
    value = 100 * share
    return f"{value:.2g} %" if value < 1 else f"{value if value == 100 else min(value, 99.9):.3g} %"


def meant(word: str, known: Iterable[object]) -> str:
    """`did you mean 'x'?` where one of the known words is close, else `known are x, y`."""
    words = [str(one) for one in known]
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return close(word, words) or f"known are {', '.join(escaped(one, _NAME) for one in words[:_LISTED])}{more}"


def close(word: str, known: Sequence[str]) -> str | None:
    """`did you mean 'x'?` where one of the known words is close, else None."""
    found = difflib.get_close_matches(word, known, 1)
    return f"did you mean '{escaped(found[0], LENGTH)}'?" if found else None


def byte_size(count: float | None) -> str:
    """Bytes as "640 bytes", "3.4 MB" or "118.0 GB", in powers of 1000; a dash for None."""
    if count is None:
        return "–"
    if count < 1000:
        return f"{count:.0f} byte{'s' * (round(count) != 1)}"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.95 or unit == "TB":
            break
    return f"{count:,.1f} {unit}"


def duration(seconds: float | None) -> str:
    """A measured time as "4.2 s", "3 min 20 s" or "2 h 05 min"; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def estimate(seconds: float) -> str:
    """An expected time, no more precise than an estimate is: "40 s", "12 minutes", "3.5 hours", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def clock(seconds: float) -> str:
    """A running time as "3:20" or "2:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: float | None) -> str:
    """A positive figure in three digits; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"
