"""What the driver sends to a worker, and what a worker reports of itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from datainf_ray.common.versions import versions
from datainf_ray.config import RunConfig
from datainf_ray.corpus.chunks import Chunk, Corpus
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Fold
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.model.replica import Verdict
from datainf_ray.model.sense import StartLoss
from datainf_ray.request.job import Job, Source
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.tasks import own

CorpusName = Literal["train", "queries"]


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is made from; the same for every worker of a run."""

    config: RunConfig
    facts: ModelFacts
    corpora: dict[str, Corpus]  # train, queries
    sample: tuple[Example, ...]  # real rows on which every replica compares its gradients with autograd
    directory: RunDirectory
    index: RunDirectory | None = None  # where the gradient index is written, or read from
    index_owner: str | None = None  # the fingerprint in its parts; None: they are an older version's, and have none
    fingerprint: str = ""  # of the run, which is in all that it goes on from
    guessed: bool = False  # `sample` is of queries whose pictures are not made yet: its losses say nothing
    task_code: own.TaskCode | None = None  # the code of a task of the user's own
    installed: dict[str, str] = field(default_factory=versions)  # where it was made, on the driver: results rest on it


def _corpora(job: Job) -> dict[str, Corpus]:
    """The corpora as workers read them: pictures that are made of the queries are in the run directory."""
    if not job.makes:
        return job.corpora
    return {**job.corpora, "queries": replace(job.corpora["queries"], made=job.directory.made)}


def worker_spec(job: Job) -> WorkerSpec:
    """What the workers of a job's run are made from."""
    return WorkerSpec(
        config=job.config,
        facts=job.facts,
        corpora=_corpora(job),
        sample=job.sample,
        directory=job.directory,
        index=job.index,
        index_owner=job.index_owner,
        guessed=job.makes and "train" not in job.corpora,
        task_code=job.task_code,
    )


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker reports of itself when it is up."""

    node: str
    host: str
    device: str
    dtype: str
    attention: str
    verdict: Verdict
    weights: str  # digest
    loss: StartLoss | None
    fetched: float  # seconds until the base's files were on this machine
    seconds: float  # until the model was loaded and checked, fetching included


@dataclass(frozen=True)
class Sweep:
    """One fold over the chunks of a corpus. `inputs` are states in the object store, one reference per shard."""

    number: int  # within the run; a worker keeps the inputs of one sweep at a time
    name: str
    corpus: CorpusName
    fold: type[Fold]
    shards: tuple[tuple[str, ...], ...]  # the blocks' names, in portions of a size that suits the object store
    batch_tokens: int
    inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)  # the same for every chunk
    resident: bool = True  # inputs and sums are on the device, not on the host
    source: Source = "backward"
    keep: bool = False  # give back the gradients too
    index: bool = False  # write them to the gradient index
    unusable: tuple[int, ...] = ()  # queries without a gradient
    directory: RunDirectory | None = None  # where scores are committed; None: the run's own

    @property
    def statistics(self) -> int:
        """How many statistics a chunk gives: one per shard, and the top rows where there are scores."""
        return len(self.shards) + self.fold.scoring

    @property
    def outputs(self) -> int:
        """How many results there are beside the report: the statistics, and gradients where they are kept."""
        return self.statistics + self.keep


@dataclass(frozen=True)
class Order:
    """One chunk, and what is known of it."""

    chunk: Chunk
    kept: tuple[Any, ...] = ()  # the reference to its kept gradients, if there is one
    committed: bool = False  # its scores are written already
    crashed: tuple[int, ...] = ()  # numbers of rows that end their worker, and are left alone
    trial: bool = False  # only to see whether the worker survives: nothing is written, and nothing given back
    per_row: dict[str, np.ndarray] = field(default_factory=dict)  # inputs of the fold with an entry per row
    batch_tokens: int | None = None  # where the sweep's own took more memory than the machine has
