"""What a worker does with queries that are prompts alone: the model makes their pictures, and the run keeps them.

A picture is written once. Where two workers have made the same one, the first stays, and both read that one later.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pyarrow as pa
from torch import nn

from datainf_ray.cluster.chunk import ChunkReport, Timing
from datainf_ray.cluster.orders import WorkerSpec
from datainf_ray.cluster.picture_orders import PictureOrder, mark
from datainf_ray.corpus.pictures import made_name
from datainf_ray.corpus.rows import RowReader
from datainf_ray.model.faults import is_of_rows, told
from datainf_ray.runs.directory import MADE
from datainf_ray.tasks.task import Task

_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("detail", pa.string())])


def make_pictures(
    task: Task, model: nn.Module, tokenizer: Any, spec: WorkerSpec, order: PictureOrder, since: float
) -> tuple[ChunkReport, pa.Table]:
    """The report of a chunk of queries, and the table of them, when their pictures are in the run directory.

    A row that cannot be read is left alone: the sweep over the queries says why. So is one of which the model can make
    no picture, and then `detail` says why; what is not the row's affair is raised. `since` is when the worker was free,
    by time.monotonic.
    """
    began, waited = time.time(), time.monotonic() - since
    assert task.maker is not None
    make = task.maker(model, tokenizer, spec.facts.task)
    reader = RowReader(replace(spec.corpora["queries"], made=None))
    try:
        rows = reader.read(order.chunk)
    finally:
        reader.close()
    table = []
    for row in rows:
        if row.problem is not None or row.row in order.crashed:
            continue
        detail = None
        try:
            picture = make(row.fields | {"id": row.id}, mark(spec.fingerprint, row.row))
        except Exception as error:
            if not is_of_rows(error):
                raise
            detail = told(error)
        else:
            spec.directory.commit(f"{MADE}/{made_name(row.row)}", picture)
        table.append({"row": row.row, "detail": detail})
    timing = Timing(began, time.time(), waited)
    return ChunkReport(order.chunk.number, len(rows), 0, timing, {}), pa.Table.from_pylist(table, _SCHEMA)
