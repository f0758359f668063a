"""The worker: an actor with a replica on its GPU, which sweeps the chunks it is given."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray
import torch
from torch import Tensor

from datainf_ray.cluster.chunk import (
    commit_scores,
    committed_scores,
    query_table,
    report_of,
    sweep_chunk,
    top_of,
)
from datainf_ray.config import RunConfig
from datainf_ray.corpus.batches import collate
from datainf_ray.corpus.chunks import Chunk, Corpus
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.tokens import Example
from datainf_ray.errors import RunFailedError
from datainf_ray.influence.folds import Fold, Scores
from datainf_ray.job import encoder_for
from datainf_ray.model.inspect import ModelFacts, load_tokenizer
from datainf_ray.model.replica import Verdict, load_replica
from datainf_ray.runs.directory import RunDirectory

CorpusName = Literal["train", "queries"]


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is made from; the same for every worker of a run."""

    config: RunConfig
    facts: ModelFacts
    corpora: dict[CorpusName, Corpus]
    sample: tuple[Example, ...]  # real rows on which every replica compares its gradients with autograd
    directory: RunDirectory


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when it is up."""

    host: str
    device: str
    dtype: str
    attention: str
    verdict: Verdict
    seconds: float  # from its first line to ready


@dataclass(frozen=True)
class Sweep:
    """One fold over the chunks of a corpus. `inputs` are states in the object store, one reference per shard."""

    number: int  # within the run; a worker keeps the inputs of one sweep at a time
    name: str
    corpus: CorpusName
    fold: type[Fold]
    shards: tuple[tuple[str, ...], ...]  # the blocks' names, in portions of a size that suits the object store
    inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)  # the same for every chunk
    per_row: dict[str, np.ndarray] = field(default_factory=dict)  # one entry per row of the corpus
    unusable: tuple[int, ...] = ()  # queries without a gradient
    committed: frozenset[int] = frozenset()  # chunks whose scores an earlier attempt has written

    @property
    def outputs(self) -> int:
        """How many statistics a chunk gives: one per shard, and the top rows where there are scores."""
        return len(self.shards) + (self.fold is Scores)


class Worker:
    """Loads its replica when it is made. Raises where that cannot be: the pool tells the user why."""

    def __init__(self, spec: WorkerSpec) -> None:
        began = time.perf_counter()
        config = spec.config
        # Sums depend on the number of threads, and Ray's default for it on the machine.
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
        if spec.sample:
            sample = collate(spec.sample, range(len(spec.sample)), self.pad_id).to(self.device)
            self.verdict = self.replica.check(sample)
        else:
            self.verdict = Verdict(self.replica.path, None, self.replica.reason)
        self._sweep: int | None = None
        self._inputs: dict[str, dict[str, Tensor]] = {}
        self.seconds = time.perf_counter() - began

    def ready(self) -> WorkerInfo:
        base = self.replica.model.get_base_model()
        return WorkerInfo(
            host=socket.gethostname(),
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            dtype=str(base.dtype).removeprefix("torch."),
            attention=str(getattr(base.config, "_attn_implementation", None)),
            verdict=self.verdict,
            seconds=self.seconds,
        )

    def run(self, sweep: Sweep, chunk: Chunk) -> tuple[Any, ...]:
        """Sweep one chunk: its report, then one statistic per shard, then its top rows where there are scores."""
        began = time.perf_counter()
        rows = self.readers[sweep.corpus].read(chunk)
        examples = self.encoders[sweep.corpus].encode(rows)
        if chunk.number in sweep.committed:
            influence, status, state = committed_scores(self.spec.directory, chunk, examples)
        else:
            swept = sweep_chunk(
                self.replica,
                examples,
                self._fold_maker(sweep, chunk),
                self.spec.config.cluster.batch_tokens,
                self.pad_id,
            )
            status, state = swept.status, swept.fold.result()
            if sweep.fold is Scores:
                keep = self.spec.config.results.scores
                influence = commit_scores(self.spec.directory, chunk, examples, swept, sweep.unusable, keep)
        table = query_table(examples, swept) if sweep.corpus == "queries" else None
        report = report_of(chunk, examples, status, time.perf_counter() - began, table)
        shards = [{name: state[name].cpu().numpy() for name in shard} for shard in sweep.shards]
        top = [top_of(influence, examples, self.spec.config.results.top_k)] if sweep.fold is Scores else []
        return (report, *shards, *top)

    def _fold_maker(self, sweep: Sweep, chunk: Chunk) -> Callable[[], Fold]:
        if self._sweep != sweep.number:
            self._inputs = {}  # before the new ones are fetched: both need not fit
            self._inputs = {name: self._fetch(references) for name, references in sweep.inputs.items()}
            self._sweep = sweep.number
        rows = chunk.rows
        own = {k: torch.from_numpy(v[chunk.first : chunk.first + rows].copy()) for k, v in sweep.per_row.items()}
        blocks = self.spec.facts.blocks
        return lambda: sweep.fold(blocks, rows, self.device, **self._inputs, **sweep.values, **own)

    def _fetch(self, references: tuple[Any, ...]) -> dict[str, Tensor]:
        """A state's tensors on this worker's device; on a CPU they stay in the object store, shared and read-only."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return {
                name: torch.from_numpy(array).to(self.device)
                for shard in ray.get(list(references))
                for name, array in shard.items()
            }
