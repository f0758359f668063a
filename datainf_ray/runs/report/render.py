"""HTML from the templates beside this file. Rows are other people's text: whatever a template prints is escaped, and
without characters that are not seen or turn the text around; ids and names pass `plain`, which cuts them too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from datainf_ray.common.words import duration, percent, printable, short, visible


def render(template: str, **context: Any) -> str:
    """A template from `templates/`, filled in; a name that `context` lacks is an error."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("datainf_ray.runs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        count=count,
        signed=signed,
        net=net,
        short=short,
        times=times,
        duration=duration,
        plain=printable,
        percent=percent,
    )
    return environment


def count(value: float | None) -> str:
    """1234567 as "1,234,567"; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """An influence, with its sign and three digits: "−3.21e-05"."""
    return "–" if value is None else f"{value:+.2e}".replace("-", "−", 1) if value < 0 else f"{value:+.2e}"


def net(value: float) -> str:
    """A sum over queries in root mean squares: "+0.83", "−2.10"."""
    return f"{value:+.2f}".replace("-", "−")


def times(value: float) -> str:
    """A multiple: "4.7×", "120×"."""
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"
