"""The scores of a chunk, committed once. An interrupted scoring sweep computes only the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from datainf_ray.cluster.chunk import NONFINITE, Swept
from datainf_ray.common.errors import DamagedError
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.passages import room_for
from datainf_ray.influence.folds import Scores, Statistic
from datainf_ray.runs.checksums import read_checked_table, table_file
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.parts import chunk_name
from datainf_ray.runs.schemas import across, examples_schema, matrix, vectors
from datainf_ray.runs.texts import with_less_text
from datainf_ray.runs.top import Top, select_top

MOMENTS = b"datainf.moments"  #: what a chunk's file has beside its rows: the blocks' moments


def commit_scores(
    directory: RunDirectory, owner: str, chunk: Chunk, swept: Swept, unusable: Sequence[int], keep: bool
) -> tuple[np.ndarray, pa.Table, dict[str, Statistic]]:
    """Write the chunk's scores, once; returns what is there then, as `committed_scores` does.

    Another worker may have written the chunk before, with other bits where its device is of another kind: then its
    scores are returned, so that all that a run says of a row is of one kind. `unusable` are the queries that have no
    gradient. With `keep` false no influence is written, and this worker's own are returned. What is there and is not as
    the run `owner` wrote it is replaced.
    """
    fold = swept.fold
    assert isinstance(fold, Scores)
    influence = fold.influence().float().cpu().numpy()
    asked = np.setdiff1d(np.arange(influence.shape[1]), list(unusable))
    facts, usable = _finite(swept.facts, swept.usable, influence[:, asked])
    missing = ~usable
    influence[missing] = np.nan
    influence[:, list(unusable)] = np.nan
    sqnorms = fold.sqnorms.sum(1).float().cpu().numpy()
    columns = [facts[name] for name in ("row", "id", "tokens", "tokens_cut")]
    columns += [
        facts["loss"].cast(pa.float32()),
        pa.chunked_array([pa.array(sqnorms, pa.float32(), mask=missing)]),
        facts["status"],
        pc.if_else(pc.equal(facts["detail"], ""), pa.scalar(None, pa.string()), facts["detail"]),
    ]
    by_block = 0
    if keep:
        columns.append(vectors(influence, missing))
        if (each := fold.by_block()) is not None:
            by_block = each.shape[2]
            columns.append(vectors(each.flatten(1).float().cpu().numpy(), missing))
    columns += across(influence[:, asked], missing)
    selves = fold.self_influence()
    for own in selves or ():
        columns.append(pa.chunked_array([pa.array(own.float().cpu().numpy(), pa.float32(), mask=missing)]))
    state = fold.result()
    moments = {name: statistic["moments"].tolist() for name, statistic in state.items()}
    columns.append(pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), facts["predicted"]))
    schema = examples_schema(influence.shape[1], keep, by_block, selves is not None)
    schema = schema.with_metadata({MOMENTS: json.dumps(moments).encode()})
    name = chunk_name(chunk.number)
    data = table_file(pa.Table.from_arrays(columns, schema=schema), owner, name)
    if not directory.commit(name, data):
        try:
            there = committed_scores(directory, owner, chunk, facts, keep)
            if keep:
                return there
        except DamagedError:
            directory.write(name, data)
    return influence, facts, state


def _finite(facts: pa.Table, usable: np.ndarray, influence: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """The facts, and which rows have a score, less those of which an influence is no number.

    Their gradients were finite, so it is the iHVPs that are too large, or a product of the two.
    """
    bad = usable & ~np.isfinite(influence).all(axis=1)
    if not bad.any():
        return facts, usable
    at = facts.schema.get_field_index("status")
    status = np.where(bad, NONFINITE, facts["status"].to_numpy(zero_copy_only=False))
    facts = facts.set_column(at, facts.schema.field(at), pa.array(status, pa.string()))
    loss = pc.if_else(pa.array(bad), pa.scalar(None, facts["loss"].type), facts["loss"])
    at = facts.schema.get_field_index("loss")
    return facts.set_column(at, facts.schema.field(at), loss), usable & ~bad


def committed_scores(
    directory: RunDirectory, owner: str, chunk: Chunk, facts: pa.Table, keep: bool = True
) -> tuple[np.ndarray, pa.Table, dict[str, Statistic]]:
    """What is committed for this chunk: its influences (rows × queries, NaN where there is none), its facts with the
    statuses and details that are written, and the blocks' moments. Raises `DamagedError` where the file holds other
    rows, or is not as the run `owner` wrote it. With `keep` false it has no influences.
    """
    name = chunk_name(chunk.number)
    table = read_checked_table(directory, name, owner)
    if table["row"].to_pylist() != facts["row"].to_pylist():
        raise DamagedError(directory.path(name), f"does not hold the rows of chunk {chunk.number}")
    moments = json.loads(table.schema.metadata[MOMENTS])
    state = {name: {"moments": torch.tensor(value, dtype=torch.float64)} for name, value in moments.items()}
    facts = facts.set_column(facts.schema.get_field_index("status"), "status", table["status"])
    if "detail" in table.schema.names:  # an earlier version may have written the chunk
        detail = pc.fill_null(table["detail"], "")
        facts = facts.set_column(facts.schema.get_field_index("detail"), "detail", detail)
    influence = matrix(table["influence"]) if keep else np.empty((len(table), 0), np.float32)
    return influence, facts, state


def top_of(influence: np.ndarray, facts: pa.Table, k: int) -> Top:
    """The chunk's best rows for every query, with as much of their texts as there is room for in the run's best."""
    top = select_top(influence, facts["row"].to_numpy(), facts.select(["row", "id", "preview", "text", "picture"]), k)
    most = room_for(2 * k * influence.shape[1])
    return replace(top, texts=with_less_text(top.texts, most))
