"""Sweeps on the cluster: a fold over the chunks of a corpus, run by the pool and summed in the tree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from datainf_ray.cluster.orders import Order, Sweep, WorkerSpec
from datainf_ray.cluster.pool import Done, Pool
from datainf_ray.cluster.states import Held, Shards, States
from datainf_ray.cluster.sums import Sums, Tally
from datainf_ray.common.errors import StoppedError
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.influence.folds import Fold
from datainf_ray.influence.method import CURVATURE, Over
from datainf_ray.planning.sizing import Sizes
from datainf_ray.request.job import Source
from datainf_ray.runs.checkpoints import CHECKPOINTS
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.record import SweepRecord
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.top import Top
from datainf_ray.watch.progress import Silent, Watcher


class ClusterSweeps(States):
    """`influence.method.Sweeps` on a pool of workers, for `queries` queries.

    `chunks` are those of each set of training rows that a sweep goes over, and `query_chunks` those of the queries;
    `committed` are the training chunks whose scores are written already. With `source` "index" training gradients are
    read from the gradient index; `directory` is where scores are committed, if that is not the run's own.

    After a sweep `records` has one more entry, which says what the sweep took, and `recorded` is called. After the
    scoring sweep `top` has the top rows, and `status` and `problems` say how the training rows fared. `pulse` is called
    while a sweep goes on, and may end it by an error.
    """

    def __init__(
        self,
        pool: Pool,
        spec: WorkerSpec,
        chunks: Mapping[Over, list[Chunk]],
        query_chunks: list[Chunk],
        queries: int,
        sizes: Sizes,
        watcher: Watcher,
        committed: frozenset[int],
        records: list[SweepRecord],
        source: Source = "backward",
        directory: RunDirectory | None = None,
        *,
        held: Callable[[int], int] = lambda size: 0,
        recorded: Callable[[], None] = lambda: None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(spec.facts.blocks, queries, directory or spec.directory, spec.fingerprint, watcher.say, held)
        self.pool, self.spec, self.sizes = pool, spec, sizes
        self.chunks, self.query_chunks = chunks, query_chunks
        self.groups = sizes.groups
        self.watcher, self.committed, self.source = watcher, committed, source
        self.elsewhere = directory
        self.unusable: tuple[int, ...] = ()
        self.records = records
        self.top: Top | None = None
        self.vectors: Shards = ()  # what the rows were scored by
        self.status: Counter[str] = Counter()
        self.problems: list[tuple[str, str, str]] = []
        self.scored_tokens = 0
        self.cut: int | None = None  # rows with more tokens than max_length
        self.tables: list[pa.Table] = []
        self.recorded, self.pulse = recorded, pulse
        self._runs: Counter[str] = Counter()
        # of each set of rows, by chunk: the reference to its gradients, and their node
        self._kept: dict[str, dict[int, tuple[Any, str]]] = {}

    def run(
        self,
        name: str,
        fold: type[Fold],
        over: Over | Literal["queries"] = "train",
        values: Mapping[str, Any] | None = None,
        *,
        per_row: Mapping[str, np.ndarray] | None = None,
        **inputs: Shards,
    ) -> Shards:
        """`Sweeps.run`; over the rows of the queries too. `per_row` are inputs of the fold with an entry per row."""
        kept = dict(self._kept.get(over, {}))
        sweep = self._sweep(name, fold, over, {**(values or {})}, inputs, keeps=not kept)
        chunks = self.query_chunks if over == "queries" else self.chunks[over]
        key = self._key(name, over)
        sums = Sums(
            fold,
            len(chunks),
            [self.bytes_of(k, fold.held) for k in range(len(self.shards))],
            fold.scoring,
            self.spec.directory if over != "queries" and self.elsewhere is None else None,
            f"{CHECKPOINTS}/sums/{key}",
            self.spec.config.cluster.checkpoint_seconds,
            self.owner,
            self.say,
        )
        sums.restore()
        running = _RunningSweep(sweep, over, chunks, kept, per_row or {}, sums)
        began = time.perf_counter()
        self.watcher.begin(name, running.rows)
        self.pool.log("sweep_begun", sweep=name, rows=running.rows)
        if (restored := sums.tally).rows:
            self.watcher.say(f"{name}: {restored.rows:,} rows taken up from an earlier attempt")
            self.watcher.advance(restored.rows, 0, self.pool.ready)
        try:
            self._go_over(running)
        except (KeyboardInterrupt, StoppedError):
            if not sums.large:  # else it may take longer than whoever interrupts us waits
                sums.keep(always=True)
            raise
        self.watcher.end()
        sums.keep(always=False)  # what follows from it is kept a little later
        return self._come_to_an_end(running, key, began)

    def beside(self, chunks: Mapping[Over, list[Chunk]], directory: RunDirectory) -> ClusterSweeps:
        """Sweeps by the same workers for the same queries over the gradient index, with scores in another directory."""
        sizes = replace(self.sizes, gradients="recompute")
        quiet = ClusterSweeps(
            self.pool,
            self.spec,
            chunks,
            [],
            self.queries,
            sizes,
            Silent(),
            frozenset(),
            [],
            "index",
            directory,
            held=self.held,
        )
        quiet.unusable = self.unusable
        return quiet

    def _sweep(
        self,
        name: str,
        fold: type[Fold],
        over: Over | Literal["queries"],
        values: dict[str, Any],
        inputs: dict[str, Shards],
        keeps: bool,
    ) -> Sweep:
        """What the workers are told of a sweep; `keeps`: its gradients may be kept, as none are yet."""
        source: Source = "backward" if over == "queries" else self.source
        backward = source == "backward"
        if fold.scoring:
            self.vectors = inputs["vectors"]
        if fold.scoring and self.spec.config.results.blocks:
            values = {**values, "by_block": True}
        return Sweep(
            number=next(self.pool.numbers),
            name=name,
            corpus="queries" if over == "queries" else "train",
            fold=fold,
            shards=self.shards,
            batch_tokens=self.sizes.batch_tokens,
            inputs=inputs,
            values=values,
            resident=self.sizes.resident,
            source=source,
            keep=keeps and over in CURVATURE and backward and fold.keeps and self.sizes.gradients == "keep",
            index=fold.scoring and backward and self.spec.index is not None,
            unusable=self.unusable,
            directory=self.elsewhere,
        )

    def _go_over(self, running: _RunningSweep) -> None:
        """Have every chunk computed whose sums are not there yet, and again what is lost meanwhile."""
        chunks, sums = running.chunks, running.sums
        left = sums.missing
        while left:
            for done in self.pool.run(
                running.sweep, [chunks[leaf] for leaf in left], self._order(running), running.where
            ):
                self.pulse()
                running.workers = max(running.workers, self.pool.ready)
                if done is None:
                    self.watcher.advance(0, 0, self.pool.ready)
                else:
                    self._take_in(running, done)
                sums.tick()
            left = sorted(sums.settle())
            if left:
                self.watcher.say(
                    f"{running.sweep.name}: the sums of {len(left)} chunks were lost with a node; "
                    "they are computed again"
                )
                self.watcher.advance(-sum(chunks[leaf].rows for leaf in left), 0, self.pool.ready)

    def _order(self, running: _RunningSweep) -> Callable[[Chunk], Order]:
        scoring = running.sweep.fold.scoring

        def order(chunk: Chunk) -> Order:
            place = slice(chunk.first, chunk.first + chunk.rows)
            return Order(
                chunk,
                kept=running.kept[chunk.number][:1] if chunk.number in running.kept else (),
                committed=scoring and chunk.number in self.committed,
                per_row={key: value[place] for key, value in running.per_row.items()},
            )

        return order

    def _take_in(self, running: _RunningSweep, done: Done) -> None:
        """A chunk's results: into the sums, and what is kept of it."""
        sweep, report = running.sweep, done.report
        if sweep.keep:
            self._kept.setdefault(running.over, {})[done.chunk.number] = (done.results[-1], done.node)
        running.sums.add(running.leaves[done.chunk.number], done.results[: sweep.statistics], Tally.of(report))
        if report.facts is not None:
            running.tables[report.chunk] = report.facts
        self.watcher.advance(report.rows, report.tokens, self.pool.ready)

    def _come_to_an_end(self, running: _RunningSweep, key: str, began: float) -> Shards:
        """Record what the sweep took and what is known after it; its state."""
        sweep, sums, kept = running.sweep, running.sums, running.kept
        *root, tally = sums.result()
        began = self.pool.begun[-1] if running.workers else began
        seconds = round(time.perf_counter() - began, 3)
        self.pool.log("sweep_done", sweep=sweep.name, rows=running.rows, seconds=seconds)
        self.record(
            SweepRecord(
                id=key,
                name=sweep.name,
                source="object-store" if kept and len(kept) == len(running.chunks) else sweep.source,
                examples=tally.status.get(OK, 0),
                tokens=tally.tokens,
                seconds=seconds,
                workers=running.workers,
                recomputed=tally.recomputed,
                smaller_batches=tally.smaller,
            )
        )
        self.tables = [running.tables[k] for k in sorted(running.tables)]
        if sweep.fold.scoring:
            *root, self.top = root
            self.scored_tokens = tally.tokens
            self.status, self.problems, self.cut = Counter(tally.status), list(tally.problems), tally.cut
            self._kept = {}
        state = tuple(value if k in sums.large else ray.put(value) for k, value in enumerate(root))
        return Held(state) if sweep.fold.held else state

    def _key(self, name: str, over: str) -> str:
        """What a sweep is called in files: the same in every attempt, because a method's program is."""
        parts = [name, *([over] if over not in ("train", name) else []), *([self.step] if self.step else [])]
        stem = "-".join(parts).replace(" ", "-")
        self._runs[stem] += 1
        return f"{stem}-{self._runs[stem]}"

    def record(self, record: SweepRecord) -> None:
        """Record what a sweep took, in place of the record of an earlier attempt."""
        self.records[:] = [*(r for r in self.records if r.id != record.id), record]
        self.recorded()


@dataclass
class _RunningSweep:
    """A sweep that goes on."""

    sweep: Sweep
    over: str
    chunks: list[Chunk]
    kept: dict[int, tuple[Any, str]]  # by chunk: the reference to gradients kept by an earlier sweep, and their node
    per_row: Mapping[str, np.ndarray]
    sums: Sums
    tables: dict[int, pa.Table] = field(default_factory=dict)  # by chunk: the facts of its rows, of queries only
    workers: int = 0  # the most that were up

    def __post_init__(self) -> None:
        self.rows = sum(chunk.rows for chunk in self.chunks)
        self.leaves = {chunk.number: leaf for leaf, chunk in enumerate(self.chunks)}

    def where(self, chunk: Chunk) -> str | None:
        """The node that a chunk's kept gradients lie on."""
        return self.kept[chunk.number][1] if chunk.number in self.kept else None
