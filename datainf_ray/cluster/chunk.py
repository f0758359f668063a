"""What a worker does with one chunk: rows become examples, batches and gradients, and a fold takes those."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datainf_ray.corpus.batches import collate, plan_batches
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Fold, Scores
from datainf_ray.model.replica import Replica
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import OK, examples_schema, matrix, vectors
from datainf_ray.runs.top import Top, select_top

NONFINITE = "nonfinite"
_MOMENTS = b"datainf.moments"


@dataclass(frozen=True)
class ChunkReport:
    """What the driver learns of a finished chunk; the statistics themselves travel beside it."""

    chunk: int
    rows: int
    tokens: int
    seconds: float
    status: dict[str, int]
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # (id, status, detail) of some bad rows
    table: pa.Table | None = None  # queries only: one row per example


@dataclass
class Swept:
    """A chunk's examples after a sweep: the fold, each row's loss (NaN without), and how each row fared."""

    fold: Fold
    losses: Tensor  # (rows,) float64
    status: list[str]


def sweep_chunk(
    replica: Replica,
    examples: Sequence[Example],
    make_fold: Callable[[], Fold],
    batch_tokens: int,
    pad_id: int,
) -> Swept:
    """Feed the gradients of a chunk's usable examples to a fold.

    Batches follow from the examples' lengths alone, and are padded on the right whatever side the tokenizer is set to
    for generating: a causal model never sees what comes after, and an encoder's first token stays the first. A row
    whose loss or gradient is not finite has spoiled the fold's sums by the time it is known, so the chunk begins again
    without it; the other rows keep their batches.
    """
    usable = [k for k, example in enumerate(examples) if example.status == OK]
    batches = [[usable[i] for i in batch] for batch in plan_batches([examples[k].tokens for k in usable], batch_tokens)]
    spoilt: set[int] = set()
    while True:
        fold = make_fold()
        losses = torch.full((len(examples),), torch.nan, dtype=torch.float64, device=replica.device)
        found: set[int] = set()
        for planned in batches:
            positions = [k for k in planned if k not in spoilt]
            if not positions:
                continue
            batch = collate(examples, positions, pad_id).to(replica.device)
            rows = batch.rows

            def consume(block: str, gradients: Tensor, at: Tensor, rows: Tensor = rows, fold: Fold = fold) -> None:
                fold.update(block, gradients, rows[at])

            batch_losses = replica.gradients(batch, consume)
            losses[rows] = batch_losses.double()
            fine = fold.finite(rows) & batch_losses.isfinite()
            if not bool(fine.all()):
                found.update(rows[~fine].tolist())
        if not found:
            break
        spoilt |= found
    status = [NONFINITE if k in spoilt else example.status for k, example in enumerate(examples)]
    return Swept(fold, losses.cpu(), status)


def report_of(
    chunk: Chunk, examples: Sequence[Example], status: Sequence[str], seconds: float, table: pa.Table | None = None
) -> ChunkReport:
    bad = [(e.id, s, e.detail) for e, s in zip(examples, status, strict=True) if s != OK]
    tokens = sum(e.tokens for e, s in zip(examples, status, strict=True) if s == OK)
    return ChunkReport(chunk.number, len(examples), tokens, seconds, dict(Counter(status)), bad[:3], table)


def query_table(examples: Sequence[Example], swept: Swept) -> pa.Table:
    """row, id, tokens, loss, status, detail, preview of a chunk's query rows; loss is null where there is none."""
    losses = swept.losses.numpy()
    fine = np.array([s == OK for s in swept.status])
    return pa.table(
        {
            "row": pa.array([e.row for e in examples], pa.int64()),
            "id": pa.array([e.id for e in examples], pa.string()),
            "tokens": pa.array([e.tokens for e in examples], pa.int64()),
            "loss": pa.array(losses, pa.float64(), mask=~fine),
            "status": pa.array(swept.status, pa.string()),
            "detail": pa.array([e.detail for e in examples], pa.string()),
            "preview": pa.array([e.preview for e in examples], pa.string()),
        }
    )


def texts_of(examples: Sequence[Example]) -> pa.Table:
    return pa.table(
        {
            "row": pa.array([e.row for e in examples], pa.int64()),
            "id": pa.array([e.id for e in examples], pa.string()),
            "preview": pa.array([e.preview for e in examples], pa.string()),
        }
    )


def part_name(chunk: Chunk) -> str:
    return f"examples/part-{chunk.number:06d}.parquet"


def commit_scores(
    directory: RunDirectory,
    chunk: Chunk,
    examples: Sequence[Example],
    swept: Swept,
    unusable: Sequence[int],
    keep: bool,
) -> np.ndarray:
    """Write the chunk's part of examples/, once; returns its influences, rows × queries, NaN where there is none.

    `unusable` are the queries that have no gradient. With `keep` false no influence is written.
    """
    fold = swept.fold
    assert isinstance(fold, Scores)
    fine = np.array([s == OK for s in swept.status])
    influence = fold.scores.float().cpu().numpy()
    influence[~fine] = np.nan
    influence[:, list(unusable)] = np.nan
    sqnorms = fold.sqnorms.sum(1).cpu().numpy()
    columns: list[pa.Array] = [
        pa.array([e.row for e in examples], pa.int64()),
        pa.array([e.id for e in examples], pa.string()),
        pa.array([e.tokens for e in examples], pa.int32()),
        pa.array(swept.losses.float().numpy(), pa.float32(), mask=~fine),
        pa.array(sqnorms.astype(np.float32), pa.float32(), mask=~fine),
        pa.array(swept.status, pa.string()),
    ]
    by_block = 0
    if keep:
        columns.append(vectors(influence, missing=~fine))
        if fold.block_scores is not None:
            by_block = fold.block_scores.shape[2]
            columns.append(vectors(fold.block_scores.flatten(1).float().cpu().numpy(), missing=~fine))
    moments = {name: value.tolist() for name, value in fold.result().items()}
    schema = examples_schema(influence.shape[1], keep, by_block)
    schema = schema.with_metadata({_MOMENTS: json.dumps(moments).encode()})
    directory.commit_table(part_name(chunk), pa.Table.from_arrays(columns, schema=schema))
    return influence


def committed_scores(
    directory: RunDirectory, chunk: Chunk, examples: Sequence[Example]
) -> tuple[np.ndarray, list[str], dict[str, Tensor]]:
    """What an earlier attempt at the run committed for this chunk: influences, status, and the blocks' moments."""
    table = directory.read_table(part_name(chunk))
    if table["row"].to_pylist() != [e.row for e in examples]:
        raise ValueError(f"{directory.path(part_name(chunk))} does not hold the rows of chunk {chunk.number}")
    moments = json.loads(table.schema.metadata[_MOMENTS])
    state = {name: torch.tensor(value, dtype=torch.float64) for name, value in moments.items()}
    return matrix(table["influence"]), table["status"].to_pylist(), state


def top_of(influence: np.ndarray, examples: Sequence[Example], k: int) -> Top:
    return select_top(influence, np.array([e.row for e in examples], dtype=np.int64), texts_of(examples), k)
