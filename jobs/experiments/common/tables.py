"""Tables for a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines, which have the same names, as a table in Markdown."""
    names = list(lines[0])
    rows = [names, ["---"] * len(names), *([str(line[name]) for name in names] for line in lines)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
