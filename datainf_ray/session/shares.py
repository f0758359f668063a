"""tokens.parquet: which rows are looked at for the shares of their tokens, and what was found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from datainf_ray.cluster.sweep import ClusterSweeps
from datainf_ray.cluster.token_orders import Pair
from datainf_ray.cluster.token_sweep import tokens_of
from datainf_ray.planning.listed import OWN_ROWS, TOKEN_SWEEPS, rows_per_query
from datainf_ray.request.job import Job
from datainf_ray.runs.schemas import OK, tokens_schema
from datainf_ray.runs.top import DIRECTIONS, QUERY


def tokens_table(job: Job, sweeps: ClusterSweeps, queries: pa.Table, tops: pa.Table) -> pa.Table:
    """tokens.parquet, from what the scoring sweep left; `queries` and `tops` are queries.parquet and top.parquet.

    Of every query the first rows of either direction, and some rows of its own; see `planning.listed`.
    """
    most = rows_per_query(job.queries)
    listed = [
        Pair(line["row"], line["query"], -1.0, line["direction"], line["rank"], line["influence"])
        for line in tops.select(["query", "direction", "rank", "row", "influence"]).to_pylist()
        if line["rank"] <= most
    ]
    own = []
    for query, (rows, status) in enumerate(
        zip(queries["rows"].to_pylist(), queries["status"].to_pylist(), strict=True)
    ):
        if status == OK:
            first = np.flatnonzero(job.groups == query)[:OWN_ROWS].tolist()
            own += [Pair(row, query, 1.0 / rows, QUERY) for row in first]
    names = TOKEN_SWEEPS
    found = tokens_of(sweeps, names[0], "train", listed, sweeps.vectors)
    found += tokens_of(sweeps, names[1], "queries", own, sweeps.vectors)
    order = {name: k for k, name in enumerate((QUERY, *DIRECTIONS))}
    found.sort(key=lambda line: (line["query"], order[line["direction"]], line["rank"] or 0, line["row"]))
    return pa.Table.from_pylist(found, schema=tokens_schema())
