"""Tokens shaded by their shares, as HTML: for the report and for a notebook's cell.

A colour that lies over whatever is below, the text's own colour on it: it can be read on light and on dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

from datainf_ray.common.words import visible

#: Behind a token that is harmful (a share above 0), and behind one that is helpful.
RED, BLUE = (216, 84, 26), (47, 111, 214)
DARKEST = 0.6  #: opacity of the largest share of a row
FAINTEST = 0.02  #: a share of less opacity than this is not shaded


def merged(tokens: Sequence[str], shares: Sequence[float | None]) -> Iterator[tuple[str, float | None]]:
    """Pieces of text and their shares; what a token without text has goes to the piece that ends its character."""
    waiting: float | None = None
    for token, share in zip(tokens, shares, strict=True):
        if share is not None or waiting is not None:
            waiting = (waiting or 0.0) + (share or 0.0)
        if token:
            yield token, waiting
            waiting = None


def opacities(shares: Sequence[float | None]) -> list[float]:
    """How strongly each token is shaded, from 0 to `DARKEST`: by its share beside the row's largest."""
    largest = max((abs(share) for share in shares if share is not None), default=0.0)
    return [0.0 if not share or not largest else DARKEST * abs(share) / largest for share in shares]


def over(share: float, opacity: float, ground: tuple[int, int, int] = (24, 24, 24)) -> tuple[float, float, float]:
    """The colour of a token where nothing shines through, as on a terminal: red, green and blue, 0 to 255."""
    red, green, blue = (
        opacity * c + (1 - opacity) * g for c, g in zip(RED if share > 0 else BLUE, ground, strict=True)
    )
    return red, green, blue


def shaded(tokens: Sequence[str], shares: Sequence[float | None]) -> Markup:
    """A row's tokens as escaped spans: red where a share is positive, blue where it is negative; no target is plain.

    A span's title is the share, for a mouse to rest on.

    Example: `shaded(["a", "<b>"], [None, -2.0])` is `a<span style="…" title="-2.00e+00">&lt;b&gt;</span>`.
    """
    parts = [*merged(tokens, shares)]
    out = Markup()
    for (token, share), opacity in zip(parts, opacities([share for _, share in parts]), strict=True):
        if share is None or opacity < FAINTEST:
            out += escape(visible(token))
            continue
        colour = ",".join(map(str, RED if share > 0 else BLUE))
        style = f"background:rgba({colour},{opacity:.2f});border-radius:2px"
        out += Markup('<span style="{}" title="{}">{}</span>').format(style, f"{share:+.2e}", visible(token))
    return out
