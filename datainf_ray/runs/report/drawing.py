"""Drawings for the report: inline SVG whose colours follow the page's light or dark scheme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Drawn in these colours, which become CSS variables.
INK, LINE, HELPFUL, HARMFUL = "#010101", "#020202", "#030303", "#040404"
#: For things that are neither helpful nor harmful.
SERIES = ("#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a")
_VARIABLES = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    HELPFUL: "var(--helpful)",
    HARMFUL: "var(--harmful)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
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


def plain(axes: Axes) -> None:
    """Axes with two thin lines, in the page's colours."""
    axes.tick_params(which="both", color=LINE, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.patch.set_visible(False)


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element; `label` is what it is to those who do not see it."""
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # inline in HTML, without the XML prologue
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
