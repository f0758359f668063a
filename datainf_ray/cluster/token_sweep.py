"""The shares of tokens, on the driver: which rows are looked at for which queries, and the table that comes of it.

A stage behind the scoring sweep. It is short beside that, and its result follows from top.parquet and the rows alone,
whoever computes it: where it is interrupted it is done again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from datainf_ray.cluster.orders import CorpusName, Order
from datainf_ray.cluster.reduce import StateLostError
from datainf_ray.cluster.states import Shards
from datainf_ray.cluster.sweep import ClusterSweeps
from datainf_ray.cluster.token_orders import Pair, TokenOrder, TokenSweep
from datainf_ray.common.errors import one_line
from datainf_ray.corpus.chunks import Chunk, Corpus
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.influence.folds import Moments
from datainf_ray.runs.record import SweepRecord
from datainf_ray.runs.schemas import OK, tokens_schema

CHUNK_ROWS = 32  #: rows in a chunk: few, so that there are some for every worker


def tokens_of(
    sweeps: ClusterSweeps, name: str, corpus: CorpusName, pairs: Sequence[Pair], vectors: Shards
) -> list[dict[str, Any]]:
    """The lines of tokens.parquet for these pairs of rows of a corpus and queries, whose vectors are given."""
    if not pairs:
        return []
    of_row: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of_row[pair.row].append(pair)
    rows = sweeps.spec.corpora[corpus]
    sweep = TokenSweep(
        number=next(sweeps.pool.numbers),
        name=name,
        corpus=corpus,
        fold=Moments,
        shards=sweeps.shards,
        batch_tokens=sweeps.sizes.batch_tokens,
        inputs={"vectors": vectors},
        resident=sweeps.sizes.resident,
    )
    began, workers = time.perf_counter(), 0
    sweeps.watcher.begin(name, len(of_row))
    sweeps.pool.log("sweep_begun", sweep=name, rows=len(of_row))
    tables: dict[int, pa.Table] = {}
    for done in sweeps.pool.run(sweep, _chunks(rows, sorted(of_row)), _order(rows, of_row)):
        sweeps.pulse()
        workers = max(workers, sweeps.pool.ready)
        if done is None:
            sweeps.watcher.advance(0, 0, sweeps.pool.ready)
            continue
        try:
            tables[done.chunk.number] = ray.get(done.results[0])
        except RayError as error:  # it went with its node
            raise StateLostError(f"{name}: {one_line(error)[:200]}") from None
        sweeps.watcher.advance(done.report.rows, done.report.tokens, sweeps.pool.ready)
    sweeps.watcher.end()
    found = pa.concat_tables([tokens_schema().empty_table(), *(tables[k] for k in sorted(tables))]).to_pylist()
    seconds = round(time.perf_counter() - began, 3)
    sweeps.pool.log("sweep_done", sweep=name, rows=len(of_row), seconds=seconds)
    fine = [line for line in found if line["status"] == OK]
    tokens = sum(len(line["tokens"]) for line in fine)
    sweeps.record(
        SweepRecord(
            id=f"{name.replace(' ', '-')}-1",
            name=name,
            source="backward",
            examples=len(fine),
            tokens=tokens,
            seconds=seconds,
            workers=workers,
        )
    )
    return found


def _chunks(corpus: Corpus, numbers: Sequence[int]) -> list[Chunk]:
    """Rows of ascending numbers, a few in a chunk."""
    parts = [numbers[first : first + CHUNK_ROWS] for first in range(0, len(numbers), CHUNK_ROWS)]
    return [replace(rows_chunk(corpus, part), number=k, first=k * CHUNK_ROWS) for k, part in enumerate(parts)]


def _order(corpus: Corpus, of_row: dict[int, list[Pair]]) -> Callable[[Chunk], Order]:
    def order(chunk: Chunk) -> Order:
        firsts = [(corpus.number_of(segment), segment.stop - segment.start) for segment in chunk.segments]
        return TokenOrder(
            chunk, pairs=tuple(p for first, count in firsts for row in range(first, first + count) for p in of_row[row])
        )

    return order
