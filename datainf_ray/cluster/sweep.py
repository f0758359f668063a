"""Sweeps on the cluster: a fold over the chunks of a corpus, run by the pool and summed in the tree.

A state (one statistic for every block) lies in the object store in shards: portions of consecutive blocks that together
are of a size the store likes. The driver holds references to it, never a large state itself.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch
from safetensors.numpy import load, save

from datainf_ray.cluster.orders import Order, Sweep, WorkerSpec
from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.reduce import HERE, Shard, Tree, arrays, compute, tensors
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Curvature, Fold, Scores, Statistic
from datainf_ray.influence.methods import Over
from datainf_ray.progress import Silent, Watcher
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.top import Top, merge_top
from datainf_ray.sizing import Sizes

SHARD_BYTES = 64 * 2**20
CHECKPOINTS = "checkpoints"  #: where a run keeps what it has solved until it is done

State = tuple[Any, ...]  # a reference per shard to {block name: {name: numpy array}}


class ClusterSweeps:
    """`influence.methods.Sweeps` on a pool of workers, for `queries` queries.

    `chunks` are those of the queries and of each set of training rows that a sweep goes over; `committed` the training
    chunks whose scores are written already. With `source` "index" training gradients are read from the gradient index;
    `directory` is where scores are committed, if that is not the run's own. After a sweep `records` has one more entry,
    which says what the sweep took; after the scoring sweep `top` has the top rows, and `status` and `problems` say how
    the training rows fared.
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
    ) -> None:
        self.pool, self.spec, self.chunks, self.queries, self.sizes = pool, spec, chunks, queries, sizes
        self.groups = sizes.groups
        self.watcher, self.committed, self.source, self.directory = watcher, committed, source, directory
        self.blocks = {block.name: block for block in spec.facts.blocks}
        self.shards = shard_blocks(spec.facts.blocks, queries)
        self.unusable: tuple[int, ...] = ()
        self.records = records
        self.top: Top | None = None
        self.status: Counter[str] = Counter()
        self.problems: list[tuple[str, str, str]] = []
        self.tables: list[pa.Table] = []
        self._kept: dict[int, tuple[Any, str]] = {}  # by chunk: the reference to its gradients, and their node
        self.numbers = itertools.count()  # of sweeps; workers know them by it

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
        values = {**(values or {}), **({"by_block": True} if scoring and config.results.blocks else {})}
        source = "backward" if over == "queries" else self.source
        backward = source == "backward"
        kept = dict(self._kept) if training else {}
        keep = training and backward and fold is Curvature and self.sizes.gradients == "keep" and not kept
        sweep = Sweep(
            number=next(self.numbers),
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
        tree = Tree(len(chunks), functools.partial(self._join, fold))
        tables: dict[int, pa.Table] = {}
        status: Counter[str] = Counter()
        problems: list[tuple[int, list[tuple[str, str, str]]]] = []
        tokens, recomputed, workers = 0, 0, 0
        self.watcher.begin(name, sum(chunk.rows for chunk in chunks))
        where = (lambda chunk: kept[chunk.number][1]) if kept else (lambda chunk: None)
        for done in self.pool.run(sweep, chunks, order, where):
            workers = max(workers, self.pool.ready)
            if done is None:
                self.watcher.advance(0, 0, self.pool.ready)
                continue
            if sweep.keep:
                self._kept[done.chunk.number] = (done.results[-1], done.node)
            tree.add(leaves[done.chunk.number], self._held(done.results[: sweep.statistics]))
            report = done.report
            status.update(report.status)
            tokens += report.tokens
            recomputed += report.recomputed
            if report.problems and len(problems) < 100:
                problems.append((report.chunk, report.problems))
            if report.facts is not None:
                tables[report.chunk] = report.facts
            self.watcher.advance(report.rows, report.tokens, self.pool.ready)
        self.watcher.end()
        record = {
            "name": name,
            "source": "object-store" if kept else source,
            "examples": status["ok"],
            "tokens": tokens,
            "seconds": round(time.perf_counter() - self.pool.begun[-1], 3),
            "workers": workers,
        }
        self.records.append(record | ({"recomputed": recomputed} if recomputed else {}))
        self.tables = [tables[k] for k in sorted(tables)]
        root = tree.result()
        if scoring:
            *root, self.top = root
            self.status = status
            self.problems = [p for _, some in sorted(problems) for p in some]
            self._kept = {}
        return tuple(ray.put(value) if self._here(k) else value for k, value in enumerate(root))

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
                    compute(functools.partial(_read, directory, file), [], self._bytes(k))
                    for k, file in enumerate(files)
                )
                for key, files in stored.items()
            }
        solved = solve()
        files: dict[str, list[str]] = {}
        for key, state in solved.items():
            files[key] = [f"{CHECKPOINTS}/{name}-{key}-{k:04d}.safetensors" for k in range(len(state))]
            written = [
                compute(functools.partial(_write, directory, file), [reference], self._bytes(k))
                for k, (file, reference) in enumerate(zip(files[key], state, strict=True))
            ]
            ray.get(written)
        directory.write_json(index, files)
        return solved

    def collect(self, state: State) -> dict[str, dict[str, torch.Tensor]]:
        """A small state in the driver's memory."""
        return {block: statistic for shard in ray.get(list(state)) for block, statistic in tensors(shard).items()}

    def spread(self, state: Mapping[str, Statistic]) -> State:
        """A small state from the driver's memory: the inverse of `collect`."""
        return tuple(ray.put(arrays({name: state[name] for name in shard})) for shard in self.shards)

    def beside(self, chunks: Mapping[Over, list[Chunk]], directory: RunDirectory) -> ClusterSweeps:
        """Sweeps by the same workers for the same queries over the gradient index, with scores in another directory."""
        sizes = replace(self.sizes, gradients="recompute")
        quiet = ClusterSweeps(
            self.pool, self.spec, chunks, self.queries, sizes, Silent(), frozenset(), [], "index", directory
        )
        quiet.unusable, quiet.numbers = self.unusable, self.numbers
        return quiet

    def _bytes(self, shard: int) -> int:
        """About what a shard of the curvature takes, at two nodes: more than that of any other statistic."""
        return 4 * 2 * self.queries * sum(self.blocks[name].size for name in self.shards[shard])

    def _here(self, k: int) -> bool:
        """Whether the driver joins the k-th results itself, and holds them meanwhile; behind the shards is the top."""
        return k == len(self.shards) or self._bytes(k) <= HERE

    def _held(self, results: Sequence[Any]) -> list[Any]:
        near = [k for k in range(len(results)) if self._here(k)]
        values = dict(zip(near, ray.get([results[k] for k in near]), strict=True))
        return [values.get(k, reference) for k, reference in enumerate(results)]

    def _join(self, fold: type[Fold], k: int, left: Any, right: Any) -> Any:
        if k == len(self.shards):
            return merge_top(left, right)
        work = functools.partial(_merge, fold)
        return work(left, right) if self._here(k) else compute(work, [left, right], self._bytes(k))


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


def _merge(fold: type[Fold], left: Shard, right: Shard) -> Shard:
    a, b = tensors(left), tensors(right)
    return arrays({name: fold.merge(a[name], b[name]) for name in a})


def _write(directory: RunDirectory, file: str, shard: Shard) -> None:
    flat = {f"{name}:{block}": value for block, statistic in shard.items() for name, value in statistic.items()}
    directory.write(file, save({name: np.asarray(value, order="C") for name, value in flat.items()}))


def _read(directory: RunDirectory, file: str) -> Shard:
    shard: Shard = {}
    for key, value in load(directory.read(file)).items():
        name, _, block = key.partition(":")
        shard.setdefault(block, {})[name] = value
    return shard
