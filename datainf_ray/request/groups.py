"""Which query each row of the queries belongs to."""

from __future__ import annotations

import numpy as np

from datainf_ray.config import RunConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.rows import RowReader

_PORTION = 4096  # rows that are read at a time to group them


def query_groups(config: RunConfig, corpus: Corpus) -> tuple[np.ndarray, list[str] | None]:
    """For every query row its query's number, and the queries' names where they are not the rows' own."""
    group = config.queries.group
    if group is None:
        return np.arange(corpus.rows), None
    if group == "all":
        return np.zeros(corpus.rows, dtype=np.int64), ["all"]
    numbers: dict[str, int] = {}
    reader = RowReader(corpus)
    try:
        groups = [
            numbers.setdefault("null" if row.group is None else row.group, len(numbers))
            for chunk in corpus.chunks(_PORTION)
            for row in reader.read(chunk)
        ]
    finally:
        reader.close()
    return np.array(groups, dtype=np.int64), list(numbers)
