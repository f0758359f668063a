"""A request to combine finished runs, understood: that their influences can be added, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options
from datainf_ray.common.words import close, counted
from datainf_ray.config.keys import LEAST_WEIGHT, MOST_WEIGHT
from datainf_ray.request.identity import changed_settings
from datainf_ray.request.places import check_places
from datainf_ray.runs.combine import Source, Sum, same_ids
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.places import place_of
from datainf_ray.runs.record import RUN_FILE, RunRecord, read_record
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.schemas import OK

#: What runs may differ in and still be added: the model itself, and how and where the work was done.
_MAY_DIFFER = ("model.", "cluster.", "results.", "index", "seed")
_MUST_NOT = ("model.task", "model.chat_template_kwargs")


@dataclass(frozen=True)
class Combination:
    """A run that is the weighted sum of others."""

    directory: RunDirectory
    config: dict[str, Any]  #: as run.json has it
    identity: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def refuse_another(self, there: RunRecord) -> None:
        """Raises `RequestError` where the run whose record is `there` is not this one."""
        if there.fingerprint == self.fingerprint:
            return
        changed = changed_settings(there.identity, self.identity)
        what = next(
            (f"{key} is {was} there and {now} here" for key, was, now in changed),
            "it combines none" if "runs" not in there.identity else "it combines others, or by other weights",
        )
        remedy = "use another output, or remove that one"
        raise RequestError("output", self.directory.url, f"holds another run: {what}", remedy)


def identity_of(
    fingerprints: Sequence[str], weights: Sequence[float], last: dict[str, Any], by_id: bool
) -> dict[str, Any]:
    """What makes a combination this one: its runs and weights, in order. All else is the `last` run's identity."""
    runs = [{"fingerprint": one, "weight": weight} for one, weight in zip(fingerprints, weights, strict=True)]
    return {**last, "runs": runs, "by_id": by_id}


def prepare_combination(
    asked: Sequence[str | Run],
    output: str,
    weights: Sequence[float] | None,
    *,
    mixed: bool,
    by_id: bool,
    options: Options,
) -> tuple[Combination, tuple[Source, ...]]:
    """Understand a request to add the influences of finished runs, or of those at URLs, and write the sum to `output`.

    With `mixed` the runs may have different methods; with `by_id` queries are found by their ids, those of the first
    run that all have. Raises `RequestError` where the runs cannot be added, or the output is not free.
    """
    if len(asked) < 2:
        raise RequestError("run", None, f"{counted(len(asked), 'run')} cannot be combined", "name two or more")
    factors = weights_of(weights, len(asked), "--weights")
    runs = [one if isinstance(one, Run) else open_run(one, options) for one in asked]
    for at, run in enumerate(runs):
        if run.url in [one.url for one in runs[:at]]:
            raise RequestError("run", run.url, "is named twice", "name each once, and give it a weight")
        if twin := next((one for one in runs[:at] if same_request(one.record, run.record)), None):
            problem = f"is the same run as {twin.url}: a link to it, a copy or the same done again"
            raise RequestError("run", run.url, problem, "name each once, and give it a weight")
    directory = RunDirectory(output, options=options)
    check_places(directory, None, [place_of(run.url, "run", options) for run in runs], {})
    sources = sources_of(runs, factors, mixed=mixed, by_id=by_id)
    last = {**runs[-1].record.identity, "train": _train_of(runs[-1])}
    identity = identity_of([run.record.fingerprint for run in runs], factors, last, by_id)
    combination = Combination(directory, _config(runs, factors, directory), identity)
    directory.check_writable()
    there = read_record(directory) if directory.exists(RUN_FILE) else None
    if there is not None:
        combination.refuse_another(there)
    return combination, sources


def same_request(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs are the same model, rows, queries and settings."""
    return bool(one.fingerprint) and one.fingerprint == other.fingerprint


def weights_of(given: Sequence[float] | None, count: int, key: str) -> tuple[float, ...]:
    """The weights of so many runs: 1 each where none are given. Raises `RequestError` naming `key`."""
    if given is None:
        return (1.0,) * count
    if len(given) != count:
        raise RequestError(
            key,
            ", ".join(f"{w:g}" for w in given),
            f"{counted(len(given), 'weight')} for {counted(count, 'run')}",
            "give one for each",
        )
    for weight in given:
        if not (math.isfinite(weight) and LEAST_WEIGHT <= weight <= MOST_WEIGHT):
            raise RequestError(key, weight, "is no weight", f"give a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return tuple(map(float, given))


def sources_of(
    runs: Sequence[Run], weights: Sequence[float], *, mixed: bool = False, by_id: bool = False
) -> tuple[Source, ...]:
    """The runs with their weights. Raises `RequestError` where they are not done or cannot be added."""
    for run in runs:
        if run.state != "done":
            raise RequestError("run", run.url, f"is {run.state!r}", "run it to its end before it is combined")
        if not run.has_scores:
            remedy = "run it with results.scores: true"
            raise RequestError("run", run.url, "stored no scores, and every row's influence is needed", remedy)
    for run in runs[1:]:
        _require_alike(run, runs[0], mixed, by_id)
    places = _places(runs) if by_id else [np.arange(len(run.queries())) for run in runs]
    return tuple(Source(*each) for each in zip(runs, weights, places, strict=True))


def sum_of(sources: Sequence[Source], top_k: int) -> Sum:
    """What the runs' sum is made of."""
    queries = [source.run.queries()["status"].take(source.places).to_pylist() for source in sources]
    unusable = tuple(k for k, each in enumerate(zip(*queries, strict=True)) if any(one != OK for one in each))
    counts = sources[-1].run.record.counts
    assert counts is not None  # of a run that is done
    selves = all(source.run.config["results"].get("self_influence") for source in sources)
    return Sum(tuple(sources), counts.rows, len(sources[-1].places), selves, unusable, top_k)


def _require_alike(run: Run, first: Run, mixed: bool, by_id: bool) -> None:
    """Raises `RequestError` where the influences of two runs are not those of the same rows on the same queries."""
    one, other = run.record, first.record
    assert one.counts is not None
    assert other.counts is not None
    if one.counts.rows != other.counts.rows:
        raise RequestError("run", run.url, f"has {one.counts.rows:,} rows, and {first.url} has {other.counts.rows:,}")
    trained = _train_of(run), _train_of(first)
    if None not in trained and trained[0] != trained[1]:  # ids of rows are compared one by one in any case
        raise RequestError("run", run.url, f"was made with other training rows than {first.url}")
    if not by_id:
        if one.identity.get("queries") != other.identity.get("queries"):
            remedy = "combine runs of the same queries, or use --by-id"
            raise RequestError("run", run.url, f"was made with other queries than {first.url}", remedy)
        if (problem := same_ids(run, first)) is not None:
            raise RequestError("queries", run.url, problem, "combine runs of the same queries, or use --by-id")
        shared = one.pictures.keys() & other.pictures.keys()
        if different := sorted(name for name in shared if one.pictures[name] != other.pictures[name]):
            problem = f"made other pictures of its queries than {first.url}: {different[0]}"
            raise RequestError("run", run.url, problem, "combine runs of queries that have pictures")
    for key, has, had in changed_settings(one.identity, other.identity):
        may = key.startswith(_MAY_DIFFER) and key not in _MUST_NOT
        if may or (mixed and key.startswith("method.")) or (by_id and key.startswith("queries.")):
            continue
        anyhow = "use --mixed to add them all the same" if key.startswith("method.") else None
        raise RequestError("run", run.url, f"{key} is {has} there and {had} in {first.url}", anyhow)
    others = {"encoding": "other tokens of the same rows", "chat_template": "another chat template"}
    for part, what in {**others, "task": "another task's code"}.items():
        if one.identity.get(part, 1) != other.identity.get(part, 1):
            raise RequestError("run", run.url, f"was made with {what} than {first.url}")


def _train_of(run: Run) -> str | None:
    """The digest of a run's training rows; of one that was answered from an index, those that the index was made of.

    None where that is not known.
    """
    record = run.record
    try:
        if record.answers is not None:
            record = read_record(RunDirectory(record.answers.run, "run", run.directory.options))
    except (RequestError, OSError):  # that run may be gone
        return None
    return record.identity.get("train")


def _places(runs: Sequence[Run]) -> list[np.ndarray]:
    """For every run the numbers of the queries that all runs have, in the order of the first; found by their ids."""
    ids = [run.queries()["id"].to_pylist() for run in runs]
    for run, names in zip(runs, ids, strict=True):
        if len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise RequestError("queries", run.url, f"several queries are called {name!r}", "combine without --by-id")
    common = set(ids[0]).intersection(*ids[1:])
    shared = [name for name in ids[0] if name in common]
    if not shared:
        raise RequestError(
            "queries", runs[-1].url, "no query's id is in all of the runs", close(str(ids[-1][0]), ids[0])
        )
    numbers = [{name: at for at, name in enumerate(names)} for names in ids]
    return [np.array([known[name] for name in shared]) for known in numbers]


def _config(runs: Sequence[Run], weights: Sequence[float], directory: RunDirectory) -> dict[str, Any]:
    """The last run's configuration, with what is another of the sum: the one that would make the runs and the sum."""
    last = runs[-1].config
    adapters = [run.config["model"].get("adapter") for run in runs]
    model = dict(last["model"])
    if all(isinstance(one, str) for one in adapters) and len(set(adapters)) == len(adapters):
        model |= {"adapter": adapters, "adapter_weights": list(weights)}
    return combined_config(
        {**last, "model": model}, directory, all(run.config["results"].get("self_influence") for run in runs)
    )


def combined_config(config: dict[str, Any], directory: RunDirectory, selves: bool) -> dict[str, Any]:
    """What run.json says of the configuration of a sum: it has no index, and no influences by block."""
    results = {**config["results"], "blocks": False, "self_influence": selves, "tokens": False}
    return {**config, "results": results, "index": None, "index_projection": None, "output": directory.url}
