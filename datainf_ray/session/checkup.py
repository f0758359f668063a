"""What a user runs before spending money: `datainf check`, a look at everything that a run will need."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datainf_ray.cluster.calibrate import measured
from datainf_ray.cluster.connect import connected
from datainf_ray.cluster.facts import ClusterFacts, wants
from datainf_ray.cluster.nodes import describe_nodes, differences
from datainf_ray.cluster.orders import worker_spec
from datainf_ray.cluster.pool import Pool
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.common.storage import AT_FIRST, patience
from datainf_ray.common.versions import versions
from datainf_ray.common.words import byte_size, counted, estimate
from datainf_ray.config import RunConfig, load_config
from datainf_ray.planning.fits import too_large
from datainf_ray.planning.forecast import forecast
from datainf_ray.request.checkpoints import several
from datainf_ray.request.job import Job, complete, doubt_of
from datainf_ray.request.sampled import describe
from datainf_ray.request.understand import begun, understand, understand_each


@dataclass(frozen=True)
class Finding:
    """The result of one check. `status` is the command's exit status if it is the worst: 0, 1 or 2; None: not tried."""

    name: str
    status: int | None
    detail: str

    @property
    def ok(self) -> bool:
        return self.status == 0


def check(
    config: str | Path | dict[str, Any] | RunConfig, say: Callable[[str], None] = lambda text: None, **overrides: Any
) -> list[Finding]:
    """Try all that a run of this configuration needs, with one worker, and write nothing that stays.

    In the order of `_CHECKS`: the request by itself; the output, from here; the cluster and its size; the packages on
    its nodes; model and adapter on one worker; rows and output from there; and a chunk, timed. `say` receives
    one line before each check that takes long. A check that fails does not raise; checks that need it are skipped.
    """
    findings: dict[str, Finding] = {}
    with _Checks(config, overrides, say) as checks:
        for name, (look, needed) in _CHECKS.items():
            wanting = next((need for need in needed if not findings[need].ok), None)
            if wanting is not None:
                findings[name] = Finding(name, None, f"not tried: {wanting} comes first")
                continue
            try:
                findings[name] = Finding(name, 0, look(checks))
            except RequestError as error:
                findings[name] = Finding(name, 2, str(error))
            except RunFailedError as error:
                findings[name] = Finding(name, 1, str(error))
    return list(findings.values())


class _Checks(ExitStack):
    """The state that the checks share. Each check sets what later checks need, and returns a text for the user."""

    job: Job
    cluster: ClusterFacts
    pool: Pool

    def __init__(self, config: Any, overrides: dict[str, Any], say: Callable[[str], None]) -> None:
        super().__init__()
        self._asked, self._say = (config, overrides), say

    def request(self) -> str:
        config = load_config(self._asked[0], **self._asked[1])
        with patience(AT_FIRST):
            requests = understand_each(config)[1] if several(config) else [understand(config)]
            self.job = job = complete(requests[0], writable=False)
        said = "" if len(requests) == 1 else f"the first of {len(requests)} adapters, each a run of its own: "
        said += (
            f"{job.rows:,} training rows, {counted(job.queries, 'query', 'queries')}; the adapter "
            f"fits its base: {job.attributed}"
        )
        return "; ".join(
            filter(None, (said, job.making, *job.facts.notes, *(describe(s, name) for name, s in job.looked.items())))
        )

    def output(self) -> str:
        with patience(AT_FIRST):
            self.job.check_output()
        there = "; it has a run of this request already" if begun(self.job.directory) else ""
        return f"{self.job.directory.url} can be written{there}"

    def nodes(self) -> str:
        config = self.job.config
        self._say("joining the cluster, or starting one here")
        self.cluster = self.enter_context(connected(config.cluster, config.output))
        room = self.cluster.room
        if not room.gpus_per_worker and (problem := too_large(self.job, room)) is not None:
            raise RequestError("model", None, f"cannot run: {problem}")
        where = "a local one, started here" if self.cluster.local else "the cluster"
        workers = counted(room.workers, "worker")
        return f"{where}: {describe_nodes()}; up to {workers} of {wants(config.cluster, room.gpus_per_worker)}"

    def packages(self) -> str:
        if found := differences():
            raise RunFailedError("; ".join(found))
        return "the same here and on every node: " + ", ".join(f"{name} {what}" for name, what in versions().items())

    def worker(self) -> str:
        self._say("waiting for a worker that loads the model")
        began = time.perf_counter()
        self.pool = Pool(worker_spec(self.job), 1, 1, self.cluster.room.gpus_per_worker, grows=not self.cluster.local)
        self.enter_context(closing(self.pool))
        self.pool.first("device_bytes")
        info = self.pool.infos[0]
        verdict = info.verdict
        how = {
            "hooks": "for whole batches",
            "vmap": f"by vmap, for rows of the same length together: {verdict.reason}",
            "one by one": f"one row at a time, which is slow: {verdict.reason}",
        }[verdict.path]
        if verdict.lengths_reason and not verdict.reason:
            how = f"for rows of the same length together: {verdict.lengths_reason}"
        if verdict.cosine is not None:
            how += f", cosine {verdict.cosine:.6f} to autograd's on real rows"
        if (doubt := doubt_of(self.job, info.loss)) is not None:
            how += f"; {doubt}"
        return (
            f"up in {time.perf_counter() - began:.1f} s on {info.host} ({info.device}, {info.dtype}): model fetched in "
            f"{info.fetched:.1f} s, loaded and checked in {info.seconds - info.fetched:.1f} s; gradients {how}"
        )

    def storage(self) -> str:
        rows = self.pool.first("reach")
        return f"the worker reads the rows ({rows} of them tried) and writes into {self.job.directory.url}"

    def one_chunk(self) -> str:
        self._say("timing a chunk")
        calibration, room = measured(self.job, self.cluster, self.pool)
        expected = forecast(self.job, calibration, room)
        return (
            f"{calibration.tokens_per_second:,.0f} tokens/s, {byte_size(calibration.worker_bytes)} at most; the whole "
            f"run takes about {estimate(expected.seconds)} with {expected.workers} "
            f"{'worker' if expected.workers == 1 else 'workers'} ({len(expected.sweeps)} sweeps)"
        )


_CHECKS: dict[str, tuple[Callable[[_Checks], str], tuple[str, ...]]] = {
    "request": (_Checks.request, ()),
    "output": (_Checks.output, ("request",)),
    "cluster": (_Checks.nodes, ("request",)),
    "packages": (_Checks.packages, ("cluster",)),
    "worker": (_Checks.worker, ("cluster", "packages")),
    "storage": (_Checks.storage, ("worker",)),
    "one chunk": (_Checks.one_chunk, ("worker",)),
}
