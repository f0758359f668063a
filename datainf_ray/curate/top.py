"""The strongest rows of a query or of all together, with their whole texts where they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import failing
from datainf_ray.config import options_among
from datainf_ray.curate.content import some_rows, text_of
from datainf_ray.curate.source import source_of
from datainf_ray.runs import results
from datainf_ray.runs.together import ALL, top_of_all

FULL = "full"


def top(
    run: str | results.Run,
    query: int | str = 0,
    k: int = 10,
    harmful: bool = False,
    text: str | None = None,
    **overrides: Any,
) -> pa.Table:
    """`session.run.Run.top`, of a run or its URL."""
    if text not in (None, "preview", FULL):
        raise RequestError("--text", text, "want preview or full")
    with failing():
        opened = run if isinstance(run, results.Run) else results.open_run(run, options_among(overrides))
        together = query == ALL and ALL not in opened.queries()["id"].to_pylist()
        # of that class: ours has another `top`
        found = top_of_all(opened, k, harmful) if together else results.Run.top(opened, query, k, harmful)
        if text != FULL:
            return found
        rows = found["row"].to_numpy()
        corpus = source_of(opened, **overrides).corpus("train")
        texts = {row.row: text_of(row) for row in some_rows(corpus, np.sort(rows))}
        whole = [_encodable(texts[row]) for row in rows.tolist()]
        return found.append_column("text", pa.array(whole, pa.string()))


def _encodable(text: str) -> str:
    """The text with a mark in place of what is no character: halves of surrogate pairs, which JSON can spell."""
    return text.encode("utf-8", "replace").decode()
