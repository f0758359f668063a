"""Sweeps on the cluster: a fold over the chunks of a corpus, run by the pool and summed in the tree.

A state (one statistic for every block) lies in the object store in shards: portions of consecutive blocks that together
are of a size the store likes. The driver holds references to it, never a large state itself.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch

from datainf_ray.cluster.orders import Order, Sweep, WorkerSpec
from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.reduce import Shard, arrays, compute, tensors
from datainf_ray.cluster.sums import Sums, Tally, got, read_shard, write_shard
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Curvature, Fold, Scores, Statistic
from datainf_ray.influence.methods import Over
from datainf_ray.planning.sizing import Sizes
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.top import Top
from datainf_ray.watch.progress import Silent, Watcher

SHARD_BYTES = 64 * 2**20
CHECKPOINTS = "checkpoints"  #: where a run keeps what it has solved until it is done

State = tuple[Any, ...]  # a reference per shard to {block name: {name: numpy array}}


class ClusterSweeps:
    """`influence.methods.Sweeps` on a pool of workers, for `queries` queries.

    `chunks` are those of the queries and of each set of training rows that a sweep goes over; `committed` the training
    chunks whose scores are written already. With `source` "index" training gradients are read from the gradient index;
    `directory` is where scores are committed, if that is not the run's own. After a sweep `records` has one more entry,
    which says what the sweep took, and `noted` is called; after the scoring sweep `top` has the top rows, and `status`
    and `problems` say how the training rows fared. `pulse` is called while a sweep goes on, and may end it by an error.
    """

    def __init__(
        self,
        pool: Pool,
        spec: WorkerSpec,
        chunks: Mapping[Over | Literal["queries"], list[Chunk]],
        queries: int,
        sizes: Sizes,
        watcher: Watcher,
        committed: frozenset[int],
        records: list[dict[str, Any]],
        source: Literal["backward", "index"] = "backward",
        directory: RunDirectory | None = None,
        *,
        noted: Callable[[], None] = lambda: None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.pool, self.spec, self.chunks, self.queries, self.sizes = pool, spec, chunks, queries, sizes
        self.groups, self.at_hand = sizes.groups, False  # where there is an index, the damping is known
        self.watcher, self.committed, self.source, self.directory = watcher, committed, source, directory
        self.blocks = {block.name: block for block in spec.facts.blocks}
        self.shards = shard_blocks(spec.facts.blocks, queries)
        self.unusable: tuple[int, ...] = ()
        self.records = records
        self.top: Top | None = None
        self.status: Counter[str] = Counter()
        self.problems: list[tuple[str, str, str]] = []
        self.tables: list[pa.Table] = []
        self.noted, self.pulse = noted, pulse
        self._runs: Counter[str] = Counter()
        self._kept: dict[int, tuple[Any, str]] = {}  # by chunk: the reference to its gradients, and their node

    def run(
        self,
        name: str,
        fold: type[Fold],
        over: Over | Literal["queries"] = "train",
        values: dict[str, Any] | None = None,
        per_row: dict[str, np.ndarray] | None = None,
        **inputs: State,
    ) -> State:
        config, scoring, training = self.spec.config, fold is Scores, over == "train"
        training_rows = over != "queries"
        values = {**(values or {}), **({"by_block": True} if scoring and config.results.blocks else {})}
        source = "backward" if over == "queries" else self.source
        backward = source == "backward"
        kept = dict(self._kept) if training else {}
        keep = training and backward and fold is Curvature and self.sizes.gradients == "keep" and not kept
        sweep = Sweep(
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
            keep=keep,
            index=scoring and backward and self.spec.index is not None,
            unusable=self.unusable,
            directory=self.directory,
        )

        def order(chunk: Chunk) -> Order:
            place = slice(chunk.first, chunk.first + chunk.rows)
            return Order(
                chunk,
                kept=kept[chunk.number][:1] if chunk.number in kept else (),
                committed=scoring and chunk.number in self.committed,
                per_row={key: value[place] for key, value in (per_row or {}).items()},
            )

        chunks = self.chunks[over]
        leaves = {chunk.number: leaf for leaf, chunk in enumerate(chunks)}
        key = self._key(name, over)
        sums = Sums(
            fold,
            len(chunks),
            [self._bytes(k) for k in range(len(self.shards))],
            scoring,
            self.spec.directory if training_rows and self.directory is None else None,
            f"{CHECKPOINTS}/sums/{key}",
            config.cluster.checkpoint_seconds,
        )
        sums.restore()
        tables: dict[int, pa.Table] = {}
        rows = sum(chunk.rows for chunk in chunks)
        self.watcher.begin(name, rows)
        self.pool.note("sweep_begun", sweep=name, rows=rows)
        if (restored := sums.tally).rows:
            self.watcher.say(f"{name}: {restored.rows:,} rows taken up from an earlier attempt")
            self.watcher.advance(restored.rows, 0, self.pool.ready)
        began, workers = time.perf_counter(), 0
        where = (
            (lambda chunk: kept[chunk.number][1] if chunk.number in kept else None) if kept else (lambda chunk: None)
        )
        left = sums.missing
        try:
            while left:
                for done in self.pool.run(sweep, [chunks[leaf] for leaf in left], order, where):
                    self.pulse()
                    workers = max(workers, self.pool.ready)
                    if done is None:
                        self.watcher.advance(0, 0, self.pool.ready)
                    else:
                        if sweep.keep:
                            self._kept[done.chunk.number] = (done.results[-1], done.node)
                        report = done.report
                        sums.add(leaves[done.chunk.number], done.results[: sweep.statistics], Tally.of(report))
                        if report.facts is not None:
                            tables[report.chunk] = report.facts
                        self.watcher.advance(report.rows, report.tokens, self.pool.ready)
                    sums.tick()
                left = sorted(sums.settle())
                if left:
                    self.watcher.say(
                        f"{name}: the sums of {len(left)} chunks were lost with a node; they are computed again"
                    )
                    self.watcher.advance(-sum(chunks[leaf].rows for leaf in left), 0, self.pool.ready)
        except KeyboardInterrupt:
            if not sums.large:  # else it may take longer than whoever interrupts us waits
                sums.keep(always=True)
            raise
        self.watcher.end()
        sums.keep(always=False)  # what follows from it is kept a little later
        *root, tally = sums.result()
        began = self.pool.begun[-1] if workers else began
        self.pool.note("sweep_done", sweep=name, rows=rows, seconds=round(time.perf_counter() - began, 3))
        self._record(
            key,
            {
                "name": name,
                "source": "object-store" if kept and len(kept) == len(chunks) else source,
                "examples": tally.status.get(OK, 0),
                "tokens": tally.tokens,
                "seconds": round(time.perf_counter() - began, 3),
                "workers": workers,
                **({"recomputed": tally.recomputed} if tally.recomputed else {}),
                **({"smaller_batches": tally.smaller} if tally.smaller else {}),
            },
        )
        self.tables = [tables[k] for k in sorted(tables)]
        if scoring:
            *root, self.top = root
            self.status, self.problems = Counter(tally.status), list(tally.problems)
            self._kept = {}
        return tuple(value if k in sums.large else ray.put(value) for k, value in enumerate(root))

    def each_block(self, function: Callable[..., Statistic], *states: State, **values: Any) -> State:
        def shard(number: int) -> Any:
            blocks = [self.blocks[name] for name in self.shards[number]]
            references = [state[number] for state in states]
            work = functools.partial(_apply, function, blocks, values)
            return compute(work, references, self._bytes(number))

        return tuple(shard(number) for number in range(len(self.shards)))

    def remember(self, name: str, solve: Callable[[], dict[str, State]]) -> dict[str, State]:
        """Keep states as safetensors in the run directory, a file per state and shard, the list of them last."""
        directory, index = self.directory or self.spec.directory, f"{CHECKPOINTS}/{name}.json"
        if directory.exists(index):
            stored: dict[str, list[str]] = directory.read_json(index)
            self.watcher.say(f"{name}: taken up from an earlier attempt")
            return {
                key: tuple(
                    compute(functools.partial(read_shard, directory, file), [], self._bytes(k))
                    for k, file in enumerate(files)
                )
                for key, files in stored.items()
            }
        solved = solve()
        files: dict[str, list[str]] = {}
        for key, state in solved.items():
            files[key] = [f"{CHECKPOINTS}/{name}-{key}-{k:04d}.safetensors" for k in range(len(state))]
            written = [
                compute(functools.partial(write_shard, directory, file), [reference], self._bytes(k))
                for k, (file, reference) in enumerate(zip(files[key], state, strict=True))
            ]
            got(written)
        directory.write_json(index, files)
        return solved

    def collect(self, state: State) -> dict[str, dict[str, torch.Tensor]]:
        """A small state in the driver's memory."""
        return {block: statistic for shard in got(state) for block, statistic in tensors(shard).items()}

    def spread(self, state: Mapping[str, Statistic]) -> State:
        """A small state from the driver's memory: the inverse of `collect`."""
        return tuple(ray.put(arrays({name: state[name] for name in shard})) for shard in self.shards)

    def beside(self, chunks: Mapping[Over, list[Chunk]], directory: RunDirectory) -> ClusterSweeps:
        """Sweeps by the same workers for the same queries over the gradient index, with scores in another directory."""
        sizes = replace(self.sizes, gradients="recompute")
        quiet = ClusterSweeps(
            self.pool, self.spec, chunks, self.queries, sizes, Silent(), frozenset(), [], "index", directory
        )
        quiet.unusable = self.unusable
        return quiet

    def _bytes(self, shard: int) -> int:
        """About what a shard of the curvature takes, at two nodes: more than that of any other statistic."""
        return 4 * 2 * self.queries * sum(self.blocks[name].size for name in self.shards[shard])

    def _key(self, name: str, over: str) -> str:
        """What a sweep is called in files: the same in every attempt, because a method's program is."""
        stem = "-".join([name, *([over] if over not in ("train", name) else [])]).replace(" ", "-")
        self._runs[stem] += 1
        return f"{stem}-{self._runs[stem]}"

    def _record(self, key: str, record: dict[str, Any]) -> None:
        """Note what a sweep took, in place of what was noted when an earlier attempt had done it."""
        self.records[:] = [r for r in self.records if r.get("id") != key] + [{**record, "id": key}]
        self.noted()


def shard_blocks(blocks: Sequence[Block], queries: int) -> tuple[tuple[str, ...], ...]:
    """The blocks' names in runs whose queries × d_l float32 take about `SHARD_BYTES`; a larger block is alone."""
    shards: list[list[str]] = []
    room = 0
    for block in blocks:
        size = 4 * queries * block.size
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(block.name)
        room -= size
    return tuple(map(tuple, shards))


def _apply(function: Callable[..., Statistic], blocks: list[Block], values: dict[str, Any], *shards: Shard) -> Shard:
    states = [tensors(shard) for shard in shards]
    return arrays({b.name: function(b, *(state[b.name] for state in states), **values) for b in blocks})
