"""The worker: an actor with a replica on its GPU, which sweeps the chunks it is given."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.exceptions import RayError

from datainf_ray.cluster.chunk import (
    Indexer,
    Keeper,
    Kept,
    Recorder,
    Swept,
    Timing,
    from_index,
    replay,
    report_of,
    sweep_chunk,
)
from datainf_ray.cluster.commit import commit_scores, committed_scores, top_of
from datainf_ray.cluster.failures import Fault, classify
from datainf_ray.cluster.held import CurrentSweep, Outcome
from datainf_ray.cluster.known import facts_before, facts_for_index, facts_from_index
from datainf_ray.cluster.memory import gpu_bytes
from datainf_ray.cluster.metrics import WorkerMetrics
from datainf_ray.cluster.nodes import require_same
from datainf_ray.cluster.orders import Order, Sweep, WorkerInfo, WorkerSpec
from datainf_ray.cluster.picture_orders import PictureOrder
from datainf_ray.cluster.picture_work import make_pictures
from datainf_ray.cluster.reduce import Shard, arrays, tensors
from datainf_ray.cluster.timed import timed_curvature
from datainf_ray.cluster.token_orders import TokenOrder
from datainf_ray.cluster.token_work import TokenWork
from datainf_ray.common.errors import DamagedError, RunFailedError, one_line
from datainf_ray.common.libraries import load_pandas, loading
from datainf_ray.common.redaction import keep_secret, redacted
from datainf_ray.corpus.batches import Batch
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Fold
from datainf_ray.influence.projection import Projector
from datainf_ray.influence.register import method_named
from datainf_ray.influence.transform import Transform
from datainf_ray.model.check import check
from datainf_ray.model.files import local_folder
from datainf_ray.model.fit import CPU_BATCH_TOKENS, largest_batch
from datainf_ray.model.forward import base_of, padding
from datainf_ray.model.inspect import load_tokenizer
from datainf_ray.model.load import load_replica
from datainf_ray.model.sense import start_loss, weights_digest
from datainf_ray.request.encoding import encoder_for
from datainf_ray.runs.index import read_part, write_part
from datainf_ray.runs.schemas import CRASHED
from datainf_ray.tasks.own import unpack
from datainf_ray.tasks.register import task_for

_TRIED = 8  # rows of each corpus that are read to see whether they can be
_CRASHED = "every worker that computed it died"

Result = TypeVar("Result")


class Worker:
    """Holds a replica, once it has loaded one.

    While a chunk computes, the next one is read and tokenised, or the last one written. All computing is done by one
    thread: OpenMP keeps helpers for every thread that has ever computed anything, and once there are more of them than
    cores they sleep between operations instead of waiting at the ready. That made two threads as slow as one.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._fetching, self._reading = threading.Lock(), threading.Lock()
        self._computing = ThreadPoolExecutor(1, "computing")
        self._at: CurrentSweep | None = None
        self._free = time.monotonic()  # since when nothing is computed
        self._transform: Transform | None = None  # in front of every fold: the identity
        self._projector: Projector | None = None
        with loading():
            importlib.import_module("peft")  # and transformers with it: while the driver still looks at the request
            load_pandas()
        gc.freeze()  # modules stay for good: collections need not look through them

    def __repr__(self) -> str:
        return self._name or super().__repr__()  # Ray's dashboard and logs show it

    def here(self) -> None:
        """Answers as soon as this worker has a place on a node, and its libraries."""

    def load(self, spec: WorkerSpec, name: str) -> WorkerInfo:
        """Make ready for a run, in which this worker is called `name`; for another one than before, if it had one.

        Raises where that cannot be: the pool tells the user why.
        """
        require_same(spec.installed)
        self._at = self._projector = None  # another run's sweeps have the same numbers
        vars(self).pop("replica", None)  # both need not fit
        return self._compute(self._load, spec, name)

    def _compute(self, work: Callable[..., Result], *values: Any) -> Result:
        return self._computing.submit(work, *values).result()

    def _load(self, spec: WorkerSpec, name: str) -> WorkerInfo:
        began = time.perf_counter()
        config = spec.config
        options = config.storage_options
        keep_secret(options)  # from this process' logs and errors too
        self.metrics = WorkerMetrics(redacted(spec.directory.url), name)
        # By one worker of every machine; the others wait for it.
        local_folder(config.model.base, "model.base", options=options)
        fetched = time.perf_counter() - began
        # For this thread: sums depend on the number of threads, and so does the speed.
        torch.set_num_threads(config.cluster.cpus_per_worker)
        use_gpu = torch.cuda.is_available() and config.cluster.gpus_per_worker != 0
        self.spec = spec
        self.device = torch.device("cuda" if use_gpu else "cpu")
        gpus = config.cluster.gpus_per_worker or 1
        if spec.task_code is not None:
            unpack(spec.task_code)
        self.task = task_for(config)
        states, loss = method_named(config.method.name).states, config.method.loss
        self.replica = load_replica(
            config.model, self.task, self.device, loss, devices=gpus, options=options, states=states
        )
        if self.replica.blocks != spec.facts.blocks:
            raise RunFailedError("the replica's blocks are not those that were planned; do driver and workers differ?")
        self.tokenizer = load_tokenizer(config.model, options, self.task)
        self.pad_id = padding(self.replica.model, self.tokenizer, spec.facts.vocabulary)
        self.readers = {name: RowReader(corpus) for name, corpus in spec.corpora.items()}
        self.encoders = {
            name: encoder_for(config, name, corpus, spec.facts, self.tokenizer) for name, corpus in spec.corpora.items()
        }
        sample = self._batch(spec.sample, range(len(spec.sample))).to(self.device) if spec.sample else None
        if sample is not None:
            self.replica.require_finite(sample, config.model)
        asked = config.cluster.batch_tokens
        budget = (None if use_gpu else CPU_BATCH_TOKENS) if asked == "auto" else asked
        verdict = check(self.replica, sample, budget)
        base = base_of(self.replica.model)
        return WorkerInfo(
            node=ray.get_runtime_context().get_node_id(),
            host=socket.gethostname(),
            device=self.replica.device_name,
            dtype=str(base.dtype).removeprefix("torch."),
            attention=str(getattr(base.config, "_attn_implementation", None)),
            verdict=verdict,
            weights=weights_digest(self.replica.model),
            loss=None if sample is None or self.spec.guessed else start_loss(self.replica, sample),
            fetched=fetched,
            seconds=time.perf_counter() - began,
        )

    def _batch(self, examples: Sequence[Example], positions: Sequence[int]) -> Batch:
        return self.task.batch(examples, positions, self.pad_id)

    def device_bytes(self) -> int | None:
        """The memory of this worker's GPU, of several the first, where folds are; None where it has none."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None

    def reach(self) -> int:
        """Read the first rows of every corpus, and write and remove a file in the output. Returns the rows read.

        Raises `RequestError` if a file cannot be read or written.
        """
        for directory in {self.spec.directory, *([self.spec.index] if self.spec.index else [])}:
            directory.check_writable()
        return sum(
            len(self.readers[name].read(rows_chunk(corpus, range(min(_TRIED, corpus.rows)))))
            for name, corpus in self.spec.corpora.items()
        )

    def largest_batch(self, longest: int, hold: int) -> int:
        """The tokens of the largest batch that this worker's GPUs have room for beside `hold` bytes."""

        def trial(tokens: int, length: int) -> Batch:
            vocabulary = self.spec.facts.vocabulary or 1
            return self.task.trial_batch(tokens, length, vocabulary, self.pad_id, self.spec.sample).to(self.device)

        return self._compute(largest_batch, self.replica, trial, longest, hold)

    def calibrate(self, chunk: Chunk, queries: int, batch_tokens: int) -> tuple[float, int, float]:
        """How fast a curvature sweep over a chunk is, reading and tokenising included: see `timed_curvature`."""

        def examples() -> list[Example]:
            return self.encoders["train"].encode(self.readers["train"].read(chunk))

        return self._compute(timed_curvature, self.replica, examples, self._batch, queries, batch_tokens)

    def run(self, number: int, sweep: Sequence[Any], order: Order) -> tuple[Any, ...]:
        """Sweep one chunk: its report, then one statistic per shard, then its top rows where there are scores, then
        its gradients where they are kept. `sweep` holds the reference to sweep `number`. A trial gives only its report.
        """
        ordered = time.monotonic()
        at = self._current(number, sweep)
        current, config = at.sweep, self.spec.config
        if isinstance(order, TokenOrder):
            return self._tokens(at, order, ordered)
        if isinstance(order, PictureOrder):
            given = self.task, self.replica.model, self.tokenizer, self.spec, order
            return self._compute(make_pictures, *given, max(ordered, self._free))
        if order.trial:
            trial = self._computed(CurrentSweep(replace(current, keep=False, index=False), at.inputs), order, ordered)
            return (report_of(order.chunk, trial.facts, trial.timing), *[None] * current.outputs)
        done = self._committed(current, order) if order.committed else None
        if done is None:
            done = self._computed(at, order, ordered)
        if done.swept is not None and current.fold.scoring:
            directory, keep = current.directory or self.spec.directory, config.results.scores
            owner = self.spec.fingerprint
            committed = commit_scores(directory, owner, order.chunk, done.swept, current.unusable, keep)
            done.influence, done.facts, done.state = committed[0], committed[1], arrays(committed[2])
        report = report_of(
            order.chunk,
            done.facts,
            done.timing,
            whole=self.spec.corpora["queries"].rows if current.corpus == "queries" else 0,
            recomputed=done.recomputed,
            batch_tokens=done.batch_tokens,
        )
        times = done.timing.seconds, done.timing.waited
        self.metrics.chunk(current.name, report.rows, report.tokens, *times, gpu_bytes(self.device))
        shards = [{name: done.state[name] for name in shard} for shard in current.shards]
        top = [] if done.influence is None else [top_of(done.influence, done.facts, config.results.top_k)]
        return (report, *shards, *top, *([done.kept] if current.keep else []))

    def _tokens(self, at: CurrentSweep, order: TokenOrder, ordered: float) -> tuple[Any, ...]:
        """The report of a chunk whose tokens' shares are wanted, and the table of them."""
        with self._reading:
            examples = self._examples(at.sweep, order)
        assert self.task.token_losses is not None
        mean = self.spec.config.method.loss == "mean"
        work = TokenWork(self.replica, self.task.token_losses, self._batch, at.inputs["vectors"], mean)

        def compute() -> tuple[pa.Table, Timing]:
            began, waited = time.time(), time.monotonic() - max(ordered, self._free)
            table = work.table(examples, order.pairs, order.batch_tokens or at.sweep.batch_tokens, self.tokenizer)
            self._free = time.monotonic()
            return table, Timing(began, time.time(), waited)

        table, timing = self._compute(compute)
        return report_of(order.chunk, facts_before(examples), timing), table

    def _current(self, number: int, sweep: Sequence[Any]) -> CurrentSweep:
        """The sweep, with its inputs at hand. A chunk of the last sweep may still be computed when the next begins."""
        with self._fetching:
            if self._at is None or self._at.sweep.number != number:
                self._at = None  # before the new ones are fetched: both need not fit
                current: Sweep = ray.get(sweep[0])
                place = self.device if current.resident else torch.device("cpu")
                inputs = {
                    name: {
                        block: statistic
                        for shard in ray.get(list(references))
                        for block, statistic in tensors(shard, place).items()
                    }
                    for name, references in current.inputs.items()
                }
                self._at = CurrentSweep(current, inputs)
            return self._at

    def _committed(self, sweep: Sweep, order: Order) -> Outcome | None:
        """What an earlier attempt wrote for a chunk of the scoring sweep; None where that is damaged, or gone."""
        began = time.time()
        facts = self._part(order)[2] if sweep.source == "index" else self._facts(sweep, order)
        try:
            influence, facts, state = committed_scores(self.spec.directory, self.spec.fingerprint, order.chunk, facts)
        except (DamagedError, FileNotFoundError) as error:
            logging.getLogger(__name__).warning("chunk %d is computed again: %s", order.chunk.number, one_line(error))
            return None
        return Outcome(facts, arrays(state), Timing(began, time.time(), 0.0), influence=influence)

    def _computed(self, at: CurrentSweep, order: Order, ordered: float) -> Outcome:
        """What comes of a chunk whose rows are read, unless their gradients are at hand, and swept.

        `ordered` is when it was ordered, by time.monotonic.
        """
        sweep = at.sweep
        kept, recomputed = self._kept(order)
        part = self._part(order) if sweep.source == "index" else None
        examples: list[Example] = []
        if kept is None and part is None:
            with self._reading:
                examples = self._examples(sweep, order)
        make_fold = self._fold_maker(at, order)
        recorders: list[Recorder] = [Keeper()] if sweep.keep else []
        smaller: int | None = None

        def compute() -> tuple[Swept, Shard, Timing]:
            nonlocal smaller
            began, waited = time.time(), time.monotonic() - max(ordered, self._free)
            if sweep.index:
                recorders.append(self._indexer(order.chunk.rows))
            if part is not None:
                swept = from_index(*part, make_fold, self.device)
            elif kept is not None:
                swept = replay(kept, make_fold, self.device, recorders)
            else:
                swept, smaller = self._swept(examples, make_fold, order.batch_tokens or sweep.batch_tokens, recorders)
                smaller = smaller or order.batch_tokens
            state = arrays(swept.fold.result())
            self._free = time.monotonic()
            return swept, state, Timing(began, time.time(), waited)

        swept, state, timing = self._compute(compute)
        done = Outcome(swept.facts, state, timing, swept, recomputed=recomputed, batch_tokens=smaller)
        for recorder in recorders:
            if isinstance(recorder, Keeper):
                done.kept = Kept(swept.facts, recorder.updates)
            elif isinstance(recorder, Indexer):
                self._write_part(order.chunk, swept, recorder)
        return done

    def _swept(
        self,
        examples: Sequence[Example],
        make_fold: Callable[[], Fold],
        batch_tokens: int,
        recorders: Sequence[Recorder],
    ) -> tuple[Swept, int | None]:
        """The chunk, in batches that the device has room for; and their size, where that is not as planned."""
        longest = max((self.replica.least_tokens(example.lengths) for example in examples), default=0)
        budget, rest = batch_tokens, (recorders, self._transform, partial(self.task.predicted, self.spec.facts.task))
        while True:
            try:
                swept = sweep_chunk(self.replica, examples, make_fold, budget, self._batch, *rest)
                return swept, budget if budget < batch_tokens else None
            except torch.OutOfMemoryError as error:
                if budget <= longest:
                    raise RunFailedError(
                        f"{self.device}: no room for a row of {longest} tokens alone: {one_line(error)[:200]}"
                    ) from None
            budget //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _kept(self, order: Order) -> tuple[Kept | None, bool]:
        """The chunk's kept gradients, and whether there were some that are lost."""
        if not order.kept:
            return None, False
        try:
            return ray.get(order.kept[0]), False
        except RayError as error:
            if classify(error).fault is Fault.PERMANENT:
                raise
            return None, True  # lost with its node, mostly: it is computed again, with the same bits

    def _examples(self, sweep: Sweep, order: Order) -> list[Example]:
        """The chunk's examples. Rows that are known to end their worker are not looked at."""
        rows = self.readers[sweep.corpus].read(order.chunk)
        crashed = set(order.crashed)
        rest = iter(self.encoders[sweep.corpus].encode([row for row in rows if row.row not in crashed]))
        return [Example(row.row, row.id, CRASHED, _CRASHED) if row.row in crashed else next(rest) for row in rows]

    def _facts(self, sweep: Sweep, order: Order) -> pa.Table:
        with self._reading:
            return facts_before(self._examples(sweep, order))

    def _part(self, order: Order) -> tuple[dict[str, np.ndarray], np.ndarray, pa.Table]:
        assert self.spec.index is not None
        part = read_part(self.spec.index, order.chunk.number, self.spec.index_owner)
        return part.gradients, part.sqnorms, facts_from_index(part.facts)

    def _indexer(self, rows: int) -> Indexer:
        if self._projector is None:
            config, blocks = self.spec.config, self.spec.facts.blocks
            self._projector = Projector(blocks, config.index_projection, config.seed, self.device)
        return Indexer(self._projector, [block.name for block in self.spec.facts.blocks], rows)

    def _write_part(self, chunk: Chunk, swept: Swept, indexer: Indexer) -> None:
        index, owner, dtype = self.spec.index, self.spec.index_owner, self.spec.config.index_dtype
        assert index is not None
        assert owner is not None
        sqnorms = swept.fold.sqnorms.cpu().numpy()
        facts = facts_for_index(swept.facts, sqnorms.sum(1), swept.usable)
        write_part(index, chunk.number, indexer.arrays, sqnorms, facts, dtype, owner)

    def _fold_maker(self, at: CurrentSweep, order: Order) -> Callable[[], Fold]:
        sweep, inputs = at.sweep, at.inputs
        own = {name: torch.tensor(values) for name, values in order.per_row.items()}
        blocks, rows = self.spec.facts.blocks, order.chunk.rows
        return lambda: sweep.fold(blocks, rows, self.device, **inputs, **sweep.values, **own)
