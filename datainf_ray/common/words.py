"""Numbers as a person reads them: counts with their noun, bytes, and how long something takes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 worker", "2,000 rows", "3 queries" (`plural="queries"`)."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def meant(word: str, known: Iterable[object]) -> str:
    """`did you mean 'x'?` where one of the known words is close, else `known are x, y`."""
    words = [str(one) for one in known]
    return close(word, words) or f"known are {', '.join(words)}"


def close(word: str, known: Sequence[str]) -> str | None:
    """`did you mean 'x'?` where one of the known words is close, else None."""
    found = difflib.get_close_matches(word, known, 1)
    return f"did you mean {found[0]!r}?" if found else None


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
