"""How drawings look: on the report's page, where their colours follow its light or dark scheme, and by themselves."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Palette:
    """The colours of a drawing."""

    ink: str
    line: str
    helpful: str
    harmful: str
    series: tuple[str, ...]  #: for things that are neither helpful nor harmful


#: Of drawings by themselves, on white.
PRINT = Palette(
    "#1d2126", "#b4bac3", "#1d5fc4", "#b8400e", ("#8a929c", "#b58900", "#2a7f62", "#7a4fa3", "#a8456e", "#3d7d9b")
)
#: Of the page: stand-ins, which become CSS variables.
PAGE = Palette(
    "#010101", "#020202", "#030303", "#040404", ("#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a")
)
_VARIABLES = {
    PAGE.ink: "var(--ink)",
    PAGE.line: "var(--line)",
    PAGE.helpful: "var(--helpful)",
    PAGE.harmful: "var(--harmful)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(PAGE.series, 1)},
}


@contextmanager
def styled(name: str) -> Iterator[None]:
    """matplotlib's settings for a drawing that is called `name` on the page; the same drawing gives the same bytes."""
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "axes.unicode_minus": True,
            "font.size": 9,
            "text.parse_math": False,  # a machine's name is a name, whatever is in it
        }
    ):
        yield


def plain(axes: Axes, palette: Palette) -> None:
    """Axes with two thin lines."""
    axes.tick_params(which="both", color=palette.line, labelcolor=palette.ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.line)
    axes.patch.set_visible(False)


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG element, called `name` on the page; `label` is what it is to those who do not see it."""
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    with styled(name):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # inline in HTML, without the XML prologue
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
