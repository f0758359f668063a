"""The scores of a chunk, committed once. An interrupted scoring sweep computes only the others."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from datainf_ray.cluster.chunk import Swept
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.influence.folds import Scores, Statistic
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.parts import chunk_name
from datainf_ray.runs.schemas import examples_schema, matrix, vectors
from datainf_ray.runs.top import Top, select_top

MOMENTS = b"datainf.moments"  #: what a chunk's file has beside its rows: the blocks' moments


def commit_scores(
    directory: RunDirectory, chunk: Chunk, swept: Swept, unusable: Sequence[int], keep: bool
) -> tuple[np.ndarray, pa.Table, dict[str, Statistic]]:
    """Write the chunk's scores, once; returns what is there then, as `committed_scores` does.

    Another worker may have written the chunk before, with other bits where its device is of another kind: then its
    scores are returned, so that all that a run says of a row is of one kind. `unusable` are the queries that have no
    gradient. With `keep` false no influence is written, and this worker's own are returned.
    """
    fold, facts, missing = swept.fold, swept.facts, ~swept.usable
    assert isinstance(fold, Scores)
    influence = fold.influence().float().cpu().numpy()
    influence[missing] = np.nan
    influence[:, list(unusable)] = np.nan
    sqnorms = fold.sqnorms.sum(1).float().cpu().numpy()
    columns = [facts[name] for name in ("row", "id", "tokens")]
    columns += [
        facts["loss"].cast(pa.float32()),
        pa.chunked_array([pa.array(sqnorms, pa.float32(), mask=missing)]),
        facts["status"],
    ]
    by_block = 0
    if keep:
        columns.append(vectors(influence, missing))
        if (each := fold.by_block()) is not None:
            by_block = each.shape[2]
            columns.append(vectors(each.flatten(1).float().cpu().numpy(), missing))
    state = fold.result()
    moments = {name: statistic["moments"].tolist() for name, statistic in state.items()}
    schema = examples_schema(influence.shape[1], keep, by_block)
    schema = schema.with_metadata({MOMENTS: json.dumps(moments).encode()})
    ours = directory.commit_table(chunk_name(chunk.number), pa.Table.from_arrays(columns, schema=schema))
    return (influence, facts, state) if ours or not keep else committed_scores(directory, chunk, facts)


def committed_scores(
    directory: RunDirectory, chunk: Chunk, facts: pa.Table
) -> tuple[np.ndarray, pa.Table, dict[str, Statistic]]:
    """What is committed for this chunk: its influences (rows × queries, NaN where there is none), its facts with the
    statuses that are written, and the blocks' moments. Raises `ValueError` where the file holds other rows.
    """
    table = directory.read_table(chunk_name(chunk.number))
    if table["row"].to_pylist() != facts["row"].to_pylist():
        path = directory.path(chunk_name(chunk.number))
        raise ValueError(f"{path} does not hold the rows of chunk {chunk.number}")
    moments = json.loads(table.schema.metadata[MOMENTS])
    state = {name: {"moments": torch.tensor(value, dtype=torch.float64)} for name, value in moments.items()}
    facts = facts.set_column(facts.schema.get_field_index("status"), "status", table["status"])
    return matrix(table["influence"]), facts, state


def top_of(influence: np.ndarray, facts: pa.Table, k: int) -> Top:
    return select_top(influence, facts["row"].to_numpy(), facts.select(["row", "id", "preview"]), k)
