"""The gradient index of a run: its end, and how well it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from datainf_ray.cluster.states import Shards
from datainf_ray.cluster.sweep import ClusterSweeps
from datainf_ray.common.storage import persistently
from datainf_ray.influence.method import SIGN
from datainf_ray.influence.projection import projected, projected_size
from datainf_ray.request.job import Job
from datainf_ray.runs.checkpoints import CHECKPOINTS
from datainf_ray.runs.checksums import read_checked_table
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import Index, write_index
from datainf_ray.runs.parts import chunk_name
from datainf_ray.runs.record import IndexRecord
from datainf_ray.runs.schemas import matrix

_SAMPLE = 64  # parts of the index on which its answers are compared with the run's own


def finish_index(job: Job, sweeps: ClusterSweeps, gradients: Shards, blocks: pa.Table, fingerprint: str) -> IndexRecord:
    """Write index.json, and return the index's entry in run.json.

    `gradients` are the queries', `blocks` is blocks.parquet, and `fingerprint` is what the index was begun with. With a
    projection, the run's own queries are answered from (a sample of) the index too. `correlation` is the correlation of
    these answers with the run's scores, as the mean over the queries.
    """
    config, method, directory = job.config, job.method, job.written_index
    assert directory is not None
    dampings = dict(zip(blocks["block"].to_pylist(), blocks["damping"].to_pylist(), strict=True))
    chunks = sweeps.chunks["train"]
    size = int(persistently(lambda: directory.fs.du(directory.root)))
    index = Index(
        fingerprint=fingerprint,
        blocks=job.facts.blocks,
        stored=tuple(projected_size(block, config.index_projection) for block in job.facts.blocks),
        dtype=config.index_dtype,
        projection=config.index_projection,
        seed=config.seed,
        rows=job.rows,
        chunks=len(chunks),
        bytes=size,
        damping=dampings if method.damped else None,
        sign=SIGN,
        model=config.model.model_dump(mode="json"),
    )
    write_index(directory, index)
    record = IndexRecord(url=directory.url, projection=index.projection, dtype=index.dtype, bytes=size)
    if index.projection is None or not config.results.scores:
        return record
    chosen = chunks[:: -(-len(chunks) // _SAMPLE)]
    place = RunDirectory(f"{job.directory.url}/{CHECKPOINTS}/projected", options=job.directory.options)
    asked = sweeps.beside({"train": chosen}, place)
    vectors = asked.each_block(projected, gradients, side=index.projection, seed=index.seed)
    known = None
    if method.damped:
        known = {block: {"damping": torch.tensor(value, dtype=torch.float64)} for block, value in dampings.items()}
    settings = replace(job.settings, self_influence=False)
    method.program(asked, vectors, settings, None if known is None else asked.spread(known))
    pairs = (
        tuple(
            matrix(read_checked_table(d, chunk_name(c.number), sweeps.owner)["influence"])
            for d in (job.directory, place)
        )
        for c in chosen
    )
    record.correlation, record.correlation_rows = _correlation(pairs), sum(chunk.rows for chunk in chosen)
    return record


def _correlation(pairs: Iterable[tuple[np.ndarray, ...]]) -> float | None:
    """Pearson's, of what was to be and what was found (rows × queries, portion by portion), the mean over queries."""
    sums: Any = 0.0
    origin = None
    for pair in pairs:
        x, y = (values.astype(np.float64) for values in pair)
        if origin is None:  # close to the means: else large sums would cancel
            origin = np.nanmean(x, axis=0), np.nanmean(y, axis=0)
        x, y = x - origin[0], y - origin[1]
        fine = np.isfinite(x) & np.isfinite(y)
        x, y = np.where(fine, x, 0), np.where(fine, y, 0)
        sums = sums + np.stack([v.sum(0) for v in (fine, x, y, x * x, y * y, x * y)])
    n, x, y, xx, yy, xy = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else None
