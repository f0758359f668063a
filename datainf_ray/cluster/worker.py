"""The worker: an actor with a replica on its GPU, which sweeps the chunks it is given."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.exceptions import ObjectLostError

from datainf_ray.cluster.chunk import (
    FACTS,
    Indexer,
    Keeper,
    Kept,
    Recorder,
    Swept,
    facts_of,
    from_index,
    replay,
    report_of,
    sweep_chunk,
)
from datainf_ray.cluster.commit import commit_scores, committed_scores, top_of
from datainf_ray.cluster.orders import Order, Sweep, WorkerInfo, WorkerSpec
from datainf_ray.cluster.reduce import Shard, arrays, tensors
from datainf_ray.corpus.batches import collate
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.tokens import Example
from datainf_ray.errors import RunFailedError
from datainf_ray.influence.folds import Curvature, Fold, Scores, Statistic
from datainf_ray.influence.projection import Projector
from datainf_ray.job import encoder_for
from datainf_ray.model.fit import largest_batch
from datainf_ray.model.inspect import load_tokenizer
from datainf_ray.model.replica import load_replica
from datainf_ray.runs.index import facts_schema, read_part, write_part

_CALIBRATION = 3.0  # seconds


class Worker:
    """Loads its replica when it is made. Raises where that cannot be: the pool tells the user why.

    It has two threads: while one computes, the other reads and tokenises the next chunk, or writes the last one.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        began = time.perf_counter()
        config = spec.config
        torch.set_num_threads(config.cluster.cpus_per_worker)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        use_gpu = torch.cuda.is_available() and config.cluster.gpus_per_worker != 0
        self.spec = spec
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.replica = load_replica(config.model, self.device, config.method.loss)
        if self.replica.blocks != spec.facts.blocks:
            raise RunFailedError("the replica's blocks are not those that were planned; do driver and workers differ?")
        self.tokenizer = load_tokenizer(config.model)
        ids = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        room = spec.facts.vocabulary or 1  # a padding token that was added to the tokenizer may have no embedding
        self.pad_id = next((i for i in ids if i is not None and i < room), 0)
        self.readers = {name: RowReader(corpus) for name, corpus in spec.corpora.items()}
        self.encoders = {
            name: encoder_for(config, name, corpus, spec.facts, self.tokenizer) for name, corpus in spec.corpora.items()
        }
        sample = collate(spec.sample, range(len(spec.sample)), self.pad_id).to(self.device) if spec.sample else None
        self.verdict = self.replica.check(sample)
        self._reading, self._computing = threading.Lock(), threading.Lock()
        self._sweep: Sweep | None = None
        self._inputs: dict[str, dict[str, Statistic]] = {}
        self._projector: Projector | None = None
        self.seconds = time.perf_counter() - began

    def ready(self) -> WorkerInfo:
        base = self.replica.model.get_base_model()
        return WorkerInfo(
            node=ray.get_runtime_context().get_node_id(),
            host=socket.gethostname(),
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            dtype=str(base.dtype).removeprefix("torch."),
            attention=str(getattr(base.config, "_attn_implementation", None)),
            verdict=self.verdict,
            seconds=self.seconds,
        )

    def device_bytes(self) -> int | None:
        """The memory of this worker's GPU; None where it has none."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None

    def largest_batch(self, longest: int, hold: int) -> int:
        """The tokens of the largest batch that this worker's GPU has room for beside `hold` bytes."""
        with self._computing:
            return largest_batch(self.replica, longest, hold)

    def calibrate(self, chunk: Chunk, queries: int, batch_tokens: int) -> tuple[float, int, float]:
        """How fast a curvature sweep over a chunk is, reading and tokenising included.

        Tokens per second, peak memory in bytes, and tokens per row.
        """
        blocks = self.spec.facts.blocks
        state = {b.name: {"vector": torch.randn(queries, b.size, device=self.device)} for b in blocks}
        nodes = {b.name: {"nodes": torch.ones(2, dtype=torch.float64)} for b in blocks}

        def turn() -> int:
            examples = self.encoders["train"].encode(self.readers["train"].read(chunk))
            fold = Curvature(blocks, len(examples), self.device, queries=state, nodes=nodes)
            swept = sweep_chunk(self.replica, examples, lambda: fold, batch_tokens, self.pad_id)
            return int(swept.facts["tokens"].to_numpy()[swept.usable].sum())

        torch.set_num_threads(self.spec.config.cluster.cpus_per_worker)
        with self._computing:
            turn()  # the first is for warming up
            tokens, turns, began = 0, 0, time.perf_counter()
            while turns == 0 or time.perf_counter() - began < _CALIBRATION:
                tokens, turns = tokens + turn(), turns + 1
            rate = tokens / (time.perf_counter() - began)
        return rate, self._peak_bytes(), tokens / (turns * chunk.rows)

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.is_file():  # what getrusage says begins with what the parent process had
            return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(self, number: int, sweep: Sequence[Any], order: Order) -> tuple[Any, ...]:
        """Sweep one chunk: its report, then one statistic per shard, then its top rows where there are scores, then
        its gradients where they are kept. `sweep` holds the reference to sweep `number`.
        """
        began = time.perf_counter()
        # For this thread, which Ray has made: sums depend on the number of threads, and so does the speed.
        torch.set_num_threads(self.spec.config.cluster.cpus_per_worker)
        current = self._current(number, sweep)
        config = self.spec.config
        done = self._committed(current, order) if order.committed else self._computed(current, order)
        if done.swept is not None and current.fold is Scores:
            directory, keep = current.directory or self.spec.directory, config.results.scores
            done.influence = commit_scores(directory, order.chunk, done.swept, current.unusable, keep)
        report = report_of(
            order.chunk,
            done.facts,
            time.perf_counter() - began,
            whole=current.corpus == "queries",
            recomputed=done.recomputed,
        )
        shards = [{name: done.state[name] for name in shard} for shard in current.shards]
        top = [] if done.influence is None else [top_of(done.influence, done.facts, config.results.top_k)]
        return (report, *shards, *top, *([done.kept] if current.keep else []))

    def _current(self, number: int, sweep: Sequence[Any]) -> Sweep:
        """The sweep, with its inputs at hand. Workers are given one sweep's chunks after another's."""
        with self._computing:
            if self._sweep is None or self._sweep.number != number:
                self._sweep, self._inputs = None, {}  # before the new ones are fetched: both need not fit
                current: Sweep = ray.get(sweep[0])
                place = self.device if current.resident else torch.device("cpu")
                self._inputs = {
                    name: {
                        block: statistic
                        for shard in ray.get(list(references))
                        for block, statistic in tensors(shard, place).items()
                    }
                    for name, references in current.inputs.items()
                }
                self._sweep = current
            return self._sweep

    def _committed(self, sweep: Sweep, order: Order) -> _Done:
        """What an earlier attempt wrote for a chunk of the scoring sweep."""
        facts = self._part(order)[2] if sweep.source == "index" else self._facts(sweep, order)
        influence, facts, state = committed_scores(self.spec.directory, order.chunk, facts)
        return _Done(facts, arrays(state), influence=influence)

    def _computed(self, sweep: Sweep, order: Order) -> _Done:
        kept, recomputed = self._kept(order)
        make_fold = self._fold_maker(sweep, order)
        recorders: list[Recorder] = []
        if sweep.source == "index":
            part = self._part(order)
            with self._computing:
                swept = from_index(*part, make_fold, self.device)
                return _Done(swept.facts, arrays(swept.fold.result()), swept)
        if sweep.keep:
            recorders.append(Keeper())
        if sweep.index:
            recorders.append(self._indexer(order.chunk.rows))
        if kept is not None:
            with self._computing:
                swept = replay(kept, make_fold, self.device, recorders)
                state = arrays(swept.fold.result())
        else:
            with self._reading:
                examples = self._examples(sweep, order)
            with self._computing:
                swept = sweep_chunk(self.replica, examples, make_fold, sweep.batch_tokens, self.pad_id, recorders)
                state = arrays(swept.fold.result())
        done = _Done(swept.facts, state, swept, recomputed=recomputed)
        for recorder in recorders:
            if isinstance(recorder, Keeper):
                done.kept = Kept(swept.facts, recorder.updates)
            elif isinstance(recorder, Indexer):
                self._write_part(order.chunk, swept, recorder)
        return done

    def _kept(self, order: Order) -> tuple[Kept | None, bool]:
        """The chunk's kept gradients, and whether there were some that are lost."""
        if not order.kept:
            return None, False
        try:
            return ray.get(order.kept[0]), False
        except ObjectLostError:  # with its node: it is computed again, with the same bits
            return None, True

    def _examples(self, sweep: Sweep, order: Order) -> list[Example]:
        return self.encoders[sweep.corpus].encode(self.readers[sweep.corpus].read(order.chunk))

    def _facts(self, sweep: Sweep, order: Order) -> pa.Table:
        with self._reading:
            examples = self._examples(sweep, order)
        return facts_of(examples, np.full(len(examples), np.nan), [e.status for e in examples])

    def _part(self, order: Order) -> tuple[dict[str, np.ndarray], np.ndarray, pa.Table]:
        assert self.spec.index is not None
        part = read_part(self.spec.index, order.chunk.number)
        facts = part.facts.append_column("detail", pa.array([""] * len(part.facts)))
        return part.gradients, part.sqnorms, facts.select(FACTS.names).cast(FACTS)

    def _indexer(self, rows: int) -> Indexer:
        if self._projector is None:
            config, blocks = self.spec.config, self.spec.facts.blocks
            self._projector = Projector(blocks, config.index_projection, config.seed, self.device)
        return Indexer(self._projector, [block.name for block in self.spec.facts.blocks], rows)

    def _write_part(self, chunk: Chunk, swept: Swept, indexer: Indexer) -> None:
        assert self.spec.index is not None
        sqnorms = swept.fold.sqnorms.cpu().numpy()
        total = pa.array(sqnorms.sum(1), pa.float32(), mask=~swept.usable)
        schema = facts_schema()
        facts = swept.facts.append_column("sqnorm", total).select(schema.names).cast(schema)
        gradients = {name: g.numpy() for name, g in indexer.gradients.items()}
        write_part(self.spec.index, chunk.number, gradients, sqnorms, facts, self.spec.config.index_dtype)

    def _fold_maker(self, sweep: Sweep, order: Order) -> Callable[[], Fold]:
        own = {name: torch.tensor(values) for name, values in order.per_row.items()}
        blocks, rows = self.spec.facts.blocks, order.chunk.rows
        return lambda: sweep.fold(blocks, rows, self.device, **self._inputs, **sweep.values, **own)


@dataclass
class _Done:
    """What came of a chunk."""

    facts: pa.Table
    state: Shard
    swept: Swept | None = None  # None: it was committed before
    influence: np.ndarray | None = None
    kept: Kept | None = None
    recomputed: bool = False
