"""The front door: what programs and the command ask for. Heavy libraries load behind it, while Ray starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datainf_ray.cluster.ahead import Ahead
from datainf_ray.cluster.background import LocalDriver
from datainf_ray.cluster.join import knock
from datainf_ray.common.errors import RequestError
from datainf_ray.common.libraries import load_pandas, loading
from datainf_ray.common.storage import AT_FIRST, failing, patience
from datainf_ray.config import RunConfig, load_config, options_among
from datainf_ray.request.checkpoints import several
from datainf_ray.request.understand import begun, portable, understand, understand_each
from datainf_ray.runs.results import Driver
from datainf_ray.session.run import Run, open_run
from datainf_ray.watch.watching import known, watching

_NAMED = 3  # runs that an error names

if TYPE_CHECKING:
    from datainf_ray.request.job import Job
    from datainf_ray.watch.progress import Watcher


def attribute(
    config: str | Path | dict[str, Any] | RunConfig,
    *,
    progress: bool | str = True,
    block: bool = True,
    **overrides: Any,
) -> Run:
    """Compute the influence of every training row on every query, and write the run directory.

    `config` is a YAML file, a dict or a `RunConfig`; `overrides` replace its keys (`output="runs/a"`, or
    `**{"cluster.max_workers": 2}`). A run that is already there and done is returned as it is; one that was cut off is
    continued. Raises `RequestError` if the request is wrong, before anything is started; `RunFailedError` if the run
    could not be finished; and its subclass `StoppedError` if `Run.stop` was called.

    `progress` is how it is shown: "auto" (True) fits a terminal, a log or a notebook; "bars", "lines", "json" (a JSON
    object a line on standard output, see `watch.json_lines`); "none" (False).

    Where `model.adapter` is a list, checkpoints of one fine-tune, there is a run for each beneath the output, in
    `runs/`, and the run that is returned has the sum of their influences, weighted by `model.adapter_weights`.

    With `block=False` the run works in the background and is returned at once: it has `progress()`, `wait()` and
    `stop()`. On a cluster (the session's own, `cluster.address` or RAY_ADDRESS) the run's driver is a process of the
    cluster, which continues when this process ends; else it is a thread of this process. Errors that are found later
    are raised by `wait()`.
    """
    known(progress)
    asked = load_config(config, **overrides)
    with failing():
        return _attribute(asked, progress) if block else _begin(asked)


def _begin(config: RunConfig) -> Run:
    with patience(AT_FIRST):
        directory = understand_each(config)[0] if several(config) else understand(config).directory
        begun(directory)  # a store that lets nobody in is told now
    if Ahead(config.cluster, config.output).wanted:
        driver: Driver = LocalDriver(config, lambda: attribute(config, progress=False))
    else:
        from datainf_ray.cluster.driver import drive

        driver = drive(portable(config), attribute)
    return Run(directory, driver)


def _attribute(config: RunConfig, progress: bool | str) -> Run:
    if several(config):
        return _attribute_each(config, progress)
    with patience(AT_FIRST):
        request = understand(config)
        there = begun(request.directory)
    with Ahead(config.cluster, config.output) as ahead:
        if not there:  # if there is a run, it may be done, or another
            ahead.begin()
        with loading(), patience(AT_FIRST):
            from datainf_ray.request.job import complete

            job = complete(request)
            ahead.hire()
        return _done(job, progress, ahead)


def _attribute_each(config: RunConfig, progress: bool | str) -> Run:
    """A run for each adapter, one after the other in one Ray, and the sum of their influences."""
    with patience(AT_FIRST):
        directory, requests = understand_each(config)
        there = begun(directory)
    with Ahead(config.cluster, config.output, lasting=True) as ahead:
        if not there:
            ahead.begin()
        with loading(), patience(AT_FIRST):
            from datainf_ray.request.job import complete
            from datainf_ray.session.checkpoints import execute_each, sum_of_jobs

            jobs = [complete(request) for request in requests]
            what = sum_of_jobs(config, directory, jobs)
            ahead.hire()
        return _ended(config, progress, ahead, lambda watcher: execute_each(what, jobs, watcher, ahead))


def query(run: str, *, queries: Any, output: str, progress: bool | str = True, **overrides: Any) -> Run:
    """Answer new queries from the gradient index of a finished run: no backward pass over the corpus.

    `run` is its URL; `queries` a path, a list of paths or the keys of the configuration's `queries`; `output` the new
    run directory. All other keys have the values of the run's configuration, unless `overrides` replaces them; but
    queries are grouped only where it is asked for.
    `progress` and errors are as in `attribute`.
    """
    known(progress)
    earlier = open_run(run, options_among(overrides))
    if earlier.record.combined is not None:
        ones = ", ".join(one.run for one in earlier.record.combined[:_NAMED])
        remedy = f"query its runs, where they have one, and combine the answers: {ones}"
        raise RequestError("run", earlier.url, "combines several runs and has no gradient index", remedy)
    asked = queries if isinstance(queries, dict) else {"path": queries}
    changed = {"queries": {**earlier.config["queries"], "group": None, **asked}}
    results = {
        **earlier.config["results"],
        "self_influence": False,
        "tokens": False,
    }  # neither is to be had of the index
    made_without = {"index": None, "index_projection": None, "results": results}
    config = load_config(earlier.config | changed | made_without, output=output, **overrides)
    with failing(), Ahead(config.cluster, config.output) as ahead:
        with loading(), patience(AT_FIRST):
            from datainf_ray.request.index_job import prepare_query

            job = prepare_query(earlier, config, meanwhile=ahead.begin)
            ahead.hire()
        return _done(job, progress, ahead)


def _done(job: Job, progress: bool | str, ahead: Ahead) -> Run:
    def work(watcher: Watcher) -> Run:
        from datainf_ray.session.execute import execute

        return execute(job, watcher, ahead)

    return _ended(job.config, progress, ahead, work)


def _ended(config: RunConfig, progress: bool | str, ahead: Ahead, work: Callable[[Watcher], Run]) -> Run:
    """Do the work of a run that is understood, and tell what came of it."""
    knock(config.cluster)  # before there is anything of a run
    with loading():
        import datainf_ray.session.execute  # noqa: F401 - `work` needs it, and here it loads faster
        from datainf_ray.session.outcome import findings, require_scores

        load_pandas()

    with watching(progress) as watcher:
        if ahead.behind:
            watcher.say("another run of this process has its local Ray; this one begins when that has ended")
        run = work(watcher)
        for line in findings(run):
            watcher.say(line)
    require_scores(run.record, config.results.most_bad_rows)
    return run
