"""The part of the report that shows rows token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from markupsafe import Markup

from datainf_ray.common.words import printable
from datainf_ray.runs.report.shading import shaded
from datainf_ray.runs.results import Run
from datainf_ray.runs.token_rows import has_tokens, token_table

_MOST = 5  # rows of either direction
_ROOM, _PAGE = 200_000, 2_000_000  # characters of HTML, for a query and for all


def section(lines: Iterable[Mapping[str, Any]], room: int = _ROOM) -> Markup:
    """What the report shows of a query's lines of tokens.parquet, to be unfolded; nothing where there are none.

    The query's own rows and the first of either direction, as far as about `room` characters go.
    """
    out = Markup()
    for line in lines:
        if line["rank"] is not None and line["rank"] > _MOST:
            continue
        called = "the query itself" if line["rank"] is None else f"{line['direction']}, rank {line['rank']}"
        name = Markup('<div class="id">{} · <bdi>{}</bdi></div>').format(called, printable(line["id"]))
        if line["shares"] is None:
            name += Markup('<div class="none">{}</div>').format(printable(line["detail"] or line["status"]))
        else:
            name += Markup('<div class="text" dir="auto" style="white-space:pre-wrap">{}</div>').format(
                shaded(line["tokens"], line["shares"])
            )
        if len(out) + len(name) > room:
            out += Markup('<p class="none">More are in tokens.parquet.</p>')
            break
        out += name
    if not out:
        return out
    said = "Token by token: red speaks against the query, blue for it; in the query itself red is what it is about"
    return Markup("<details><summary>{}</summary>{}</details>").format(said, out)


def sections(run: Run, queries: Sequence[int]) -> dict[int, Markup]:
    """The sections of some queries in a run's report; none where the run has no shares of tokens."""
    if not has_tokens(run) or not queries:
        return {}
    table = token_table(run)
    room = min(_ROOM, _PAGE // len(queries))
    return {query: section(table.filter(pc.equal(table["query"], query)).to_pylist(), room) for query in queries}
