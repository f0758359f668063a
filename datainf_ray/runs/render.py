"""HTML from the templates beside this file. Whatever a template prints is escaped: rows are other people's text."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **context: Any) -> str:
    """A template from `templates/`, filled in; a name that `context` lacks is an error."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("datainf_ray.runs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(count=count, signed=signed, short=short, times=times, duration=duration)
    return environment


def count(value: float | None) -> str:
    """1234567 as "1,234,567"; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """An influence, with its sign and three digits: "−3.21e-05"."""
    return "–" if value is None else f"{value:+.2e}".replace("-", "−", 1) if value < 0 else f"{value:+.2e}"


def short(value: float | None) -> str:
    """A positive figure in three digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes as "640 bytes", "3.4 MB" or "120 GB"."""
    if value is None:
        return "–"
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{short(value)} {unit}"
        value /= 1000
    return f"{short(value)} TB"


def times(value: float) -> str:
    """A multiple: "4.7×", "120×"."""
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"


def duration(seconds: float | None) -> str:
    """Seconds as "4.2 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
