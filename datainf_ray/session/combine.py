"""`datainf combine`: several runs' influences, weighted and added, as a run like any other. No Ray, and no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from datainf_ray.common.errors import RunFailedError, one_line
from datainf_ray.common.redaction import keep_secret, redacted, redacted_tree
from datainf_ray.common.storage import AT_FIRST, Options, failing, patience
from datainf_ray.common.versions import versions
from datainf_ray.common.words import counted
from datainf_ray.curate.by import write_by
from datainf_ray.request.combination import Combination, prepare_combination, sum_of
from datainf_ray.runs import results
from datainf_ray.runs.checkpoints import remove_checkpoints
from datainf_ray.runs.checksums import Stored, stored
from datainf_ray.runs.combine import (
    SWEEP,
    Source,
    Sum,
    combined_blocks,
    combined_pictures,
    combined_queries,
    combined_texts,
    combined_top,
    content_of,
    write_sum,
)
from datainf_ray.runs.events import Journal
from datainf_ray.runs.files import damage
from datainf_ray.runs.lease import Lease
from datainf_ray.runs.pictures import PICTURES
from datainf_ray.runs.record import (
    RUN_FILE,
    Combined,
    Counts,
    RunRecord,
    SweepRecord,
    Trainable,
    read_record,
    write_record,
)
from datainf_ray.runs.schemas import OK, left_out, table_bytes
from datainf_ray.runs.texts import TEXTS
from datainf_ray.session.attempt import Attempt, end_badly, end_well, now
from datainf_ray.session.run import Run, open_run
from datainf_ray.watch.meter import Meter
from datainf_ray.watch.progress import Watcher
from datainf_ray.watch.watching import known, watching


def combine(
    runs: Sequence[str | os.PathLike[str] | results.Run],
    output: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    mixed: bool = False,
    by_id: bool = False,
    progress: bool | str = True,
    storage_options: Options | None = None,
) -> Run:
    """Add the influences of finished runs, checkpoints of one fine-tune, and write the sum as a run of its own.

        >>> runs = [f"runs/checkpoint-{step}" for step in (100, 200, 300)]
        >>> run = datainf_ray.combine(runs, "runs/all", weights=[2e-4, 1.5e-4, 0.5e-4])  # learning rates
        >>> run.top(query=0, k=10)

    The runs, or their URLs, are of the same training rows and queries; the order is that of the training, because what
    is not summed (tokens, previews, the configuration) is the last run's. `weights` are positive, 1 each where none are
    given: TracIn's sum with equal learning rates. They are the learning rates for TracIn's own, and the mean rate of
    every epoch for LESS'. A row has a score where it has one in every run.

    Runs of different methods, whose influences are in different units, are added only with `mixed`. With `by_id` the
    queries are those that all runs have, found by their ids. `progress` and errors are as in `attribute`; memory does
    not grow with the rows. A combination that was cut off is continued by the same call.
    """
    known(progress)
    asked = [run if isinstance(run, results.Run) else os.fspath(run) for run in runs]
    options = storage_options or next((run.directory.options for run in asked if isinstance(run, results.Run)), {})
    keep_secret({"storage_options": options})
    with failing():
        with patience(AT_FIRST):
            what, sources = prepare_combination(
                asked, os.fspath(output), weights, mixed=mixed, by_id=by_id, options=options
            )
        with watching(progress) as watcher:
            run = assemble(what, watcher, lambda watcher: (sources, []), lambda earlier: _changed(earlier, sources))
            tell(run, watcher)
    return run


def tell(run: Run, watcher: Watcher) -> None:
    """The lines at the end of a run."""
    from datainf_ray.session.outcome import findings  # here, because it loads torch

    for line in findings(run):
        watcher.say(line)


def _changed(earlier: RunRecord, sources: Sequence[Source]) -> str | None:
    """What is to be said where the runs hold other scores than when they were combined; None where they do not."""
    contents = [content_of(source.run) for source in sources]
    changed = [one.run for one, now in zip(earlier.combined or [], contents, strict=True) if one.content != now]
    return f"{changed[0]} has other scores by now" if changed else None


class _Pulsing(Meter):
    """A meter that lets whoever wants the run to end have a say whenever there is news."""

    def __init__(self, watcher: Watcher, lease: Lease) -> None:
        super().__init__(watcher, lease.tell)
        self._lease = lease

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        super().advance(rows, tokens, workers)
        self._lease.check()


def assemble(
    what: Combination,
    watcher: Watcher,
    obtain: Callable[[Watcher], tuple[Sequence[Source], list[SweepRecord]]],
    changed: Callable[[RunRecord], str | None] = lambda earlier: None,
) -> Run:
    """Write the directory of a combination to its end, from wherever an earlier attempt left it.

    `obtain` gives its runs, and what it took to make them here; it is not called where all is done. `changed` says
    what has changed since a combination that is done, for which it is done again. Raises what a run raises.
    """
    journal = Journal(what.directory)
    lease = Lease(what.directory, lambda: asdict(meter.progress))
    meter = _Pulsing(watcher, lease)
    record = _begun(what)

    def keep() -> None:
        write_record(lease, record)
        journal.flush()

    def pulse() -> None:
        lease.check()
        journal.tick()

    attempt = Attempt(meter, journal, keep, pulse)
    with lease:
        if what.directory.exists(RUN_FILE):  # looked at now: a driver that was waited for may have ended the run
            earlier = read_record(what.directory)
            what.refuse_another(earlier)
            if earlier.state == "done":
                found = damage(what.directory, earlier, None) or changed(earlier)
                if found is None:
                    run = Run(what.directory)
                    write_by(run, watcher.say)
                    _finish(run)  # it may have been cut off just before the very end
                    watcher.say(f"{run.url}: already done; remove it, or choose another output, to compute it again")
                    return run
                watcher.say(f"{found}; the run is done again")
            record.counts, record.combined = earlier.counts, earlier.combined
        journal.log("run_begun", detail=record.fingerprint)
        write_record(lease, record)
        try:
            _add(what, record, *obtain(meter), attempt)
        except BaseException as error:  # an interrupt too: whoever looks at the run must not think that it goes on
            end_badly(error, record, lease, attempt)
            if isinstance(error, OSError):  # files and stores: the user's to mend
                raise RunFailedError(f"{type(error).__name__}: {one_line(error)[:500]}") from error
            raise
        end_well(record, attempt)
        run = open_run(what.directory.url, what.directory.options)
        write_by(run, watcher.say)
        _report(run)
        _finish(run)
    return run


def _begun(what: Combination) -> RunRecord:
    return RunRecord(
        state="running",
        config=redacted_tree(what.config),
        fingerprint=what.fingerprint,
        identity=what.identity,
        versions=versions(),
        created=now(),
    )


def _add(
    what: Combination, record: RunRecord, sources: Sequence[Source], swept: list[SweepRecord], attempt: Attempt
) -> None:
    """Write every table of the sum; `record` says what came of it."""
    summed = sum_of(sources, what.config["results"]["top_k"])
    blocks = combined_blocks(sources)
    record.combined = [
        Combined(
            run=redacted(source.run.url),
            fingerprint=source.run.record.fingerprint,
            weight=source.weight,
            content=content_of(source.run),
        )
        for source in sources
    ]
    _note(record, summed, blocks)
    attempt.keep()
    names = ", ".join(f"{source.weight:g} × {source.run.url}" for source in sources)
    attempt.watcher.say(f"{counted(summed.rows, 'row')}, {counted(summed.queries, 'query', 'queries')}: {names}")
    began = attempt.seconds
    attempt.watcher.begin(SWEEP, summed.rows)

    def done(rows: int, tokens: int) -> None:
        attempt.watcher.advance(rows, tokens, 1)
        attempt.pulse()

    contents = " ".join(one.content for one in record.combined)
    files, top, tally = write_sum(what.directory, summed, f"{record.fingerprint} {contents}", done)
    attempt.watcher.end()
    texts = combined_texts(summed, top.texts)
    tables = {
        "queries.parquet": combined_queries(summed),
        "blocks.parquet": blocks,
        "top.parquet": combined_top(top, texts, sources),
        TEXTS: texts,
    }
    if len(pictures := combined_pictures(summed, texts)):
        tables[PICTURES] = pictures
    written: dict[str, Stored] = {}
    for name, table in tables.items():
        data = table_bytes(table)
        what.directory.write(name, data)
        written[name] = stored(data)
    record.files = {**written, **files}
    assert record.counts is not None
    record.counts.status, record.counts.tokens, record.counts.rows_cut = dict(tally.status), tally.tokens, tally.cut
    record.problems = tally.problems
    took = {"examples": summed.rows, "tokens": tally.tokens, "seconds": round(attempt.seconds - began, 3), "workers": 1}
    record.sweeps = [*swept, SweepRecord(id=SWEEP, name=SWEEP, source="runs", **took)]
    if not record.counts.status.get(OK):
        first = next((f": {p.id}: {p.status}: {p.detail}" for p in tally.problems), "")
        raise RunFailedError(f"none of the {counted(summed.rows, 'row')} has a score in all of the runs{first}")


def _note(record: RunRecord, summed: Sum, blocks: Any) -> None:
    """What run.json says of the runs that are added: what they have in common, and what their blocks are in all."""
    records = [source.run.record for source in summed.sources]
    parameters = sum(blocks["size"].to_pylist())
    record.counts = Counts(rows=summed.rows, queries=summed.queries, blocks=len(blocks), parameters=parameters)
    record.sign = records[-1].sign
    record.damped = all(one.damped for one in records)
    for name in ("device", "dtype", "attention"):
        there = {getattr(one, name) for one in records}
        setattr(record, name, there.pop() if len(there) == 1 else None)
    record.left_out = left_out(blocks)
    trainable = [one.trainable for one in records if one.trainable is not None]
    if len(trainable) == len(records):
        record.trainable = Trainable(
            attributed=sum(one.attributed for one in trainable), total=sum(one.total for one in trainable)
        )


def _report(run: Run) -> None:
    from datainf_ray.runs.report.page import write_report  # here, because drawing takes a while to load

    write_report(run)


def _finish(run: Run) -> None:
    """What is left to do when run.json says that a run is done."""
    if not run.directory.exists("report.html"):
        _report(run)
    remove_checkpoints(run.directory)
    run.directory.remove_temporaries()
