"""Several checkpoints of one fine-tune: a run for each, and the weighted sum of their influences at the output."""

from __future__ import annotations

from collections.abc import Sequence

from datainf_ray.cluster.ahead import Ahead
from datainf_ray.common.errors import RequestError
from datainf_ray.config import RunConfig
from datainf_ray.request.combination import Combination, combined_config, identity_of, sources_of, weights_of
from datainf_ray.request.job import Job
from datainf_ray.runs.combine import Source
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.record import RUN_FILE, SweepRecord, read_record
from datainf_ray.session.combine import assemble
from datainf_ray.session.execute import execute
from datainf_ray.session.run import Run
from datainf_ray.watch.progress import Watcher


def sum_of_jobs(config: RunConfig, directory: RunDirectory, jobs: Sequence[Job]) -> Combination:
    """The run at `directory` that has the sum of what these jobs give.

    Raises `RequestError` where it cannot be written, or another run is there.
    """
    weights = weights_of(config.model.adapter_weights, len(jobs), "model.adapter_weights")
    names = config.model.adapter or ()
    for at, job in enumerate(jobs):
        twin = next((k for k in range(at) if jobs[k].fingerprint == job.fingerprint), None)
        if twin is not None:
            problem = f"is the same adapter as {names[twin]}: a link to it, or a copy"
            raise RequestError("model.adapter", names[at], problem, "name each once, and give it a weight")
    asked = combined_config(config.model_dump(mode="json"), directory, config.results.self_influence)
    identity = identity_of([job.fingerprint for job in jobs], weights, jobs[-1].identity, by_id=False)
    what = Combination(directory, asked, identity)
    directory.check_writable()
    there = read_record(directory) if directory.exists(RUN_FILE) else None
    if there is not None:
        what.refuse_another(there)
    return what


def execute_each(what: Combination, jobs: Sequence[Job], watcher: Watcher, ahead: Ahead | None = None) -> Run:
    """Do prepared jobs and write their sum, from wherever an earlier attempt left that. Raises what `execute` does.

    Until the sum is done, its run.json says how the whole is; what has been done is in the runs of the jobs.
    """
    weights = [run["weight"] for run in what.identity["runs"]]

    def obtain(meter: Watcher) -> tuple[Sequence[Source], list[SweepRecord]]:
        runs = []
        for number, job in enumerate(jobs, 1):
            meter.say(f"adapter {number} of {len(jobs)}: {job.config.model.adapter}")
            runs.append(execute(job, meter, ahead))
        return sources_of(runs, weights), [sweep for run in runs for sweep in run.record.sweeps]

    return assemble(what, watcher, obtain)
