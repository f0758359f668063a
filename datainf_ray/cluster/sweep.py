"""Sweeps on the cluster: a fold over the chunks of a corpus, run by the pool and summed in the tree.

A state (one statistic for every block) lies in the object store in shards: portions of consecutive blocks that together
are of a size the store likes. The driver holds references to it, never the state itself.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from safetensors.numpy import load, save
from torch import Tensor

from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.reduce import Tree, compute
from datainf_ray.cluster.worker import CorpusName, Sweep, WorkerSpec
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Fold, Scores
from datainf_ray.progress import Watcher
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.top import Top, merge_top

SHARD_BYTES = 64 * 2**20
CHECKPOINTS = "checkpoints"  #: where a run keeps what it has solved until it is done

State = tuple[Any, ...]  # a reference per shard to {block name: numpy array}


class ClusterSweeps:
    """`influence.methods.Sweeps` on a pool of workers, for `queries` queries.

    `committed` are the chunks whose scores are written already. After a sweep `records` has one more entry, which says
    what the sweep took, and `top` (of the scores) refers to the top rows; `status` and `problems` say how the training
    rows fared.
    """

    def __init__(
        self,
        pool: Pool,
        spec: WorkerSpec,
        chunks: dict[CorpusName, list[Chunk]],
        queries: int,
        watcher: Watcher,
        committed: frozenset[int],
        records: list[dict[str, Any]],
    ) -> None:
        self.pool, self.spec, self.chunks, self.queries = pool, spec, chunks, queries
        self.watcher, self.committed = watcher, committed
        self.blocks = {block.name: block for block in spec.facts.blocks}
        self.shards = shard_blocks(spec.facts.blocks, queries)
        self.unusable: tuple[int, ...] = ()
        self.records = records
        self.top: Any = None
        self.status: Counter[str] = Counter()
        self.problems: list[tuple[str, str, str]] = []
        self.tables: list[pa.Table] = []
        self._sweeps = 0

    def run(
        self,
        name: str,
        fold: type[Fold],
        corpus: CorpusName = "train",
        values: dict[str, Any] | None = None,
        per_row: dict[str, np.ndarray] | None = None,
        **inputs: State,
    ) -> State:
        scoring = fold is Scores
        if scoring and self.spec.config.results.blocks:
            values = {**(values or {}), "by_block": True}
        self._sweeps += 1
        sweep = Sweep(
            number=self._sweeps,
            name=name,
            corpus=corpus,
            fold=fold,
            shards=self.shards,
            inputs=inputs,
            values=values or {},
            per_row=per_row or {},
            unusable=self.unusable,
            committed=self.committed if scoring else frozenset(),
        )
        chunks = self.chunks[corpus]
        tree = Tree(len(chunks), functools.partial(self._join, fold))
        tables: dict[int, pa.Table] = {}
        status: Counter[str] = Counter()
        problems: list[tuple[int, list[tuple[str, str, str]]]] = []
        tokens, began, workers = 0, time.perf_counter(), 0
        self.watcher.begin(name, self.spec.corpora[corpus].rows)
        for done in self.pool.run(sweep, chunks):
            workers = max(workers, self.pool.ready)
            if done is None:
                self.watcher.advance(0, 0, self.pool.ready)
                continue
            tree.add(done.chunk.number, done.states)
            report = done.report
            status.update(report.status)
            tokens += report.tokens
            if report.problems and len(problems) < 100:
                problems.append((report.chunk, report.problems))
            if report.table is not None:
                tables[report.chunk] = report.table
            self.watcher.advance(report.rows, report.tokens, self.pool.ready)
        self.watcher.end()
        self.records.append(
            {
                "name": name,
                "source": "backward",
                "examples": status["ok"],
                "tokens": tokens,
                "seconds": round(time.perf_counter() - began, 3),
                "workers": workers,
            }
        )
        self.tables = [tables[k] for k in sorted(tables)]
        root = tree.result()
        if scoring:
            *root, self.top = root
            self.status = status
            self.problems = [p for _, some in sorted(problems) for p in some]
        return tuple(root)

    def each_block(self, function: Callable[..., Tensor], *states: State, **values: Any) -> State:
        def shard(number: int) -> Any:
            blocks = [self.blocks[name] for name in self.shards[number]]
            references = [state[number] for state in states]
            work = functools.partial(_apply, function, blocks, values)
            return compute(work, references, self._bytes(number))

        return tuple(shard(number) for number in range(len(self.shards)))

    def remember(self, name: str, solve: Callable[[], dict[str, State]]) -> dict[str, State]:
        """Keep states as safetensors in the run directory, a file per state and shard, the list of them last."""
        directory, index = self.spec.directory, f"{CHECKPOINTS}/{name}.json"
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

    def collect(self, state: State) -> dict[str, Tensor]:
        """A small state (scalars) in the driver's memory."""
        return {name: torch.tensor(value) for shard in ray.get(list(state)) for name, value in shard.items()}

    def top_rows(self) -> Top:
        """The most helpful and harmful rows that the scoring sweep found."""
        return ray.get(self.top)

    def _bytes(self, shard: int) -> int:
        return 4 * self.queries * sum(self.blocks[name].size for name in self.shards[shard])

    def _join(self, fold: type[Fold], k: int, left: Any, right: Any) -> Any:
        if k == len(self.shards):  # behind the shards come the top rows
            return compute(merge_top, [left, right], 0)
        return compute(functools.partial(_merge, fold), [left, right], self._bytes(k))


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


def _tensors(shard: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(value)) for name, value in shard.items()
    }  # a copy: the store's is read-only


def _apply(
    function: Callable[..., Tensor], blocks: list[Block], values: dict[str, Any], *shards: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    tensors = [_tensors(shard) for shard in shards]
    return {b.name: np.asarray(function(b, *(t[b.name] for t in tensors), **values)) for b in blocks}


def _merge(fold: type[Fold], left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    a, b = _tensors(left), _tensors(right)
    return {name: fold.merge(a[name], b[name]).numpy() for name in a}


def _write(directory: RunDirectory, file: str, shard: dict[str, np.ndarray]) -> None:
    directory.write(file, save({name: np.ascontiguousarray(value) for name, value in shard.items()}))


def _read(directory: RunDirectory, file: str) -> dict[str, np.ndarray]:
    return load(directory.read(file))
