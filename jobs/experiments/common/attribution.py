"""All methods on one model at once, in one process: the gradients are taken once, and kept in memory.

This is what `datainf run` computes, by the same functions, without a cluster: an experiment of some hundred small
fine-tunes would spend more time on starting workers than on computing. tests/experiments compares the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datainf_ray.cluster.chunk import sweep_chunk
from datainf_ray.config import load_config
from datainf_ray.corpus.batches import Batch, plan_batches
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Statistics
from datainf_ray.influence.memory import InMemory
from datainf_ray.influence.register import method_named
from datainf_ray.influence.self_influence import Gathered
from datainf_ray.model.fit import CPU_BATCH_TOKENS
from datainf_ray.model.forward import padding
from datainf_ray.model.inspect import load_tokenizer
from datainf_ray.model.load import load_replica
from datainf_ray.model.replica import Replica
from datainf_ray.model.states import state_block
from datainf_ray.request.job import Job, check_method, prepare
from experiments.common.finetune import examples_of

SEED = 0


def with_adapter(request: Mapping[str, Any], adapter: Path) -> dict[str, Any]:
    """The configuration `request`, with this adapter."""
    return {**request, "model": {**request["model"], "adapter": str(adapter)}}


@dataclass(frozen=True)
class Rows:
    """What a model gives for the n rows of a corpus: gradients (or states), n × d_l a block; losses (n)."""

    gradients: dict[str, torch.Tensor]
    losses: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Scored:
    """n × m influences, with the rows' influence on themselves where it was asked for, and the time that it took."""

    influence: np.ndarray
    selves: np.ndarray | None
    seconds: float


class Attribution:
    """The influence of a request's training rows on its queries, by any method.

        attribution = Attribution(request)       # a configuration, as `datainf run` takes it
        attribution.by("exact").influence        # n × m

    Every row must be usable. `seconds` of a method are its own, without those of the gradients that it needs; a method
    that looks at hidden states has its own pass, and is charged for it.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = dict(request)
        self.job = prepare(load_config(self.request), writable=False)
        self.train, self.queries = gradients(self.job)
        squares = [g.double().square().sum(1) for g in self.train.gradients.values()]
        self.norms = torch.stack(squares).sum(0).sqrt().numpy()

    @property
    def losses(self) -> np.ndarray:
        """Of the training rows (n)."""
        return self.train.losses

    def by(self, method: str, **keys: Any) -> Scored:
        """The influences by a method, with these keys of the configuration's `method` (self_influence too).

        Raises FloatingPointError where LiSSA's series does not converge.
        """
        selves = bool(keys.pop("self_influence", False))
        job, program = self._job(method, keys, selves), method_named(method)
        began = time.perf_counter()
        train, queries = states(self.job) if program.states else (self.train, self.queries)
        sweeps = InMemory(train.gradients, seed=SEED, own=512, pilot=max(16, min(1024, job.rows // 32)))
        vectors = program.prepare(sweeps, _means(queries.gradients, job))
        program.program(sweeps, vectors, job.settings, None)
        took = time.perf_counter() - began
        assert sweeps.scores is not None
        own = None if sweeps.selves is None else sweeps.selves[0].numpy()
        return Scored(sweeps.scores.double().numpy(), own, took)

    def _job(self, method: str, keys: Mapping[str, Any], selves: bool) -> Job:
        """The same job by another method."""
        results = {"self_influence": selves}
        config = load_config({**self.request, "method": {"name": method, **keys}, "results": results})
        check_method(config)
        return replace(self.job, config=config)


def by_epoch(
    request: Mapping[str, Any], epochs: Sequence[int], adapters: Sequence[Path]
) -> Iterator[tuple[Attribution, dict[str, Any]]]:
    """For the adapter that was kept after each of the epochs, its attribution, and what a record says of the epoch."""
    for epoch, adapter in zip(epochs, adapters, strict=True):
        attribution = Attribution(with_adapter(request, adapter))
        yield (
            attribution,
            {
                "epoch": epoch,
                "train_loss": float(attribution.losses.mean()),
                "query_loss": float(attribution.queries.losses.mean()),
                "gradient_seconds": attribution.train.seconds,
            },
        )


def gradients(job: Job) -> tuple[Rows, Rows]:
    """Those of the training rows and of the queries' rows."""
    replica = _replica(job)
    return _swept(job, replica, "train"), _swept(job, replica, "queries")


def states(job: Job) -> tuple[Rows, Rows]:
    """The last hidden states of both, in the gradients' place."""
    job = replace(job, facts=replace(job.facts, blocks=(state_block(job.facts.hidden_size),)))
    replica = _replica(job, states=True)
    return _swept(job, replica, "train"), _swept(job, replica, "queries")


def losses_of(request: Mapping[str, Any], name: str) -> np.ndarray:
    """The losses of one of a request's corpora (n), by forward passes alone."""
    job = prepare(load_config(dict(request)), writable=False)
    job = replace(job, facts=replace(job.facts, blocks=(state_block(job.facts.hidden_size),)))
    return _swept(job, _replica(job, states=True), name).losses


def batches_of(job: Job, replica: Replica, name: str, alone: bool = False) -> list[Batch]:
    """One of a job's corpora in batches, on the replica's device; `alone`: every row by itself, in order."""
    examples = examples_of(job, name)
    make = _make_batch(job, replica)
    if alone:
        planned = [[k] for k in range(len(examples))]
    else:
        planned = plan_batches([e.lengths for e in examples], _tokens(replica))
    return [make(examples, positions).to(replica.device) for positions in planned]


def _replica(job: Job, states: bool = False) -> Replica:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = job.config.storage_options
    return load_replica(job.config.model, job.task, device, job.config.method.loss, options=options, states=states)


def _make_batch(job: Job, replica: Replica) -> Callable[[Sequence[Example], Sequence[int]], Batch]:
    tokenizer = load_tokenizer(job.config.model, job.config.storage_options, job.task)
    pad = padding(replica.model, tokenizer, job.facts.vocabulary)
    return lambda examples, positions: job.task.batch(examples, positions, pad)


def _tokens(replica: Replica) -> int:
    return CPU_BATCH_TOKENS if replica.device.type == "cpu" else 2**15


def _swept(job: Job, replica: Replica, name: str) -> Rows:
    began = time.perf_counter()
    examples = examples_of(job, name)
    swept = sweep_chunk(
        replica,
        examples,
        lambda: Gathered(job.facts.blocks, len(examples), replica.device),
        _tokens(replica),
        _make_batch(job, replica),
    )
    if not swept.usable.all():
        bad = swept.facts.filter(~swept.usable).slice(0, 1).to_pylist()[0]
        raise ValueError(f"{name}: {bad['id']} is {bad['status']}: {bad['detail']}")
    found = {block: s["gradients"].cpu() for block, s in swept.fold.result().items()}
    return Rows(found, swept.facts["loss"].to_numpy(), time.perf_counter() - began)


def _means(gradients: Mapping[str, torch.Tensor], job: Job) -> Statistics:
    """The queries' gradients: the means over their rows."""
    groups, m = torch.tensor(job.groups), job.queries
    counts = torch.bincount(groups, minlength=m).clamp(min=1)
    found = {}
    for block, g in gradients.items():
        sums = g.new_zeros(m, g.shape[1]).index_add_(0, groups, g)
        found[block] = {"vector": sums / counts[:, None].to(g)}
    return found
