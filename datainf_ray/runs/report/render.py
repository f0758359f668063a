"""HTML from the templates beside this file. Whatever a template prints is escaped: rows are other people's text."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from datainf_ray.common.words import duration, short


def render(template: str, **context: Any) -> str:
    """A template from `templates/`, filled in; a name that `context` lacks is an error."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("datainf_ray.runs.report"),
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


def times(value: float) -> str:
    """A multiple: "4.7×", "120×"."""
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"
