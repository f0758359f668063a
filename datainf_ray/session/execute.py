"""The main job: from a request to a finished run directory."""

from __future__ import annotations

from dataclasses import asdict

from datainf_ray.cluster.ahead import Ahead
from datainf_ray.cluster.connect import connected
from datainf_ray.cluster.guard import Guard
from datainf_ray.cluster.witness import Witness
from datainf_ray.common.errors import ClusterLostError, RunFailedError, one_line
from datainf_ray.common.redaction import redacted_tree
from datainf_ray.common.versions import versions
from datainf_ray.common.words import counted
from datainf_ray.curate.by import write_by
from datainf_ray.influence.method import SIGN
from datainf_ray.request.job import Job
from datainf_ray.request.output import refuse_another
from datainf_ray.runs.checkpoints import remove_checkpoints
from datainf_ray.runs.events import Journal
from datainf_ray.runs.files import damage
from datainf_ray.runs.lease import Lease
from datainf_ray.runs.record import RUN_FILE, Counts, Earlier, RunRecord, Trainable, read_record, write_record
from datainf_ray.runs.report.page import write_report
from datainf_ray.runs.schemas import OK
from datainf_ray.session.attempt import Attempt, end_badly, end_well, now
from datainf_ray.session.run import Run, open_run
from datainf_ray.session.solve import solve
from datainf_ray.watch.meter import Meter
from datainf_ray.watch.progress import Watcher

#: What a run that is taken up again keeps of what run.json had.
_CARRIED = (
    "fingerprint", "sweeps", "sizes", "crashed", "startup", "device", "dtype", "attention", "capture", "weights",
    "start_loss", "pictures",
)  # fmt: skip


def execute(job: Job, watcher: Watcher, ahead: Ahead | None = None) -> Run:
    """Do a prepared job, from wherever an earlier attempt left it, and write the run directory to the end.

    `ahead` is a local Ray that may be starting already. Raises `RunFailedError` if the run cannot be finished. run.json
    records a failure or an interrupt.
    """
    journal = Journal(job.directory)
    lease = Lease(job.directory, lambda: asdict(meter.progress))
    meter = Meter(watcher, lease.tell)
    record = _begun(job)

    def keep() -> None:
        write_record(lease, record)
        journal.flush()

    def pulse() -> None:
        lease.check()
        guard.check()
        journal.tick()

    def lost(error: ClusterLostError) -> None:
        end_badly(error, record, lease, attempt)
        meter.close()
        witness.dismiss()

    guard = Guard(lost)
    attempt = Attempt(meter, journal, keep, pulse)
    with lease:
        if job.directory.exists(RUN_FILE):  # looked at now: a driver that was waited for may have ended the run
            earlier = read_record(job.directory)
            refuse_another(job.directory, earlier, job.identity, job.fingerprint)
            found = damage(job.directory, earlier, job.written_index) if earlier.state == "done" else None
            if earlier.state == "done" and found is None:
                run = Run(job.directory)
                write_by(run, watcher.say)
                _finish(job, run)  # it may have been cut off just before the very end
                watcher.say(f"{run.url}: already done; remove it, or choose another output, to compute it again")
                if run.top_k != job.config.results.top_k:
                    watcher.say(f"it lists {counted(run.top_k, 'row')} a query and side; `datainf top -k` shows others")
                return run
            if found is not None:
                watcher.say(f"{found}; the run is done again")
            for name in _CARRIED:
                setattr(record, name, getattr(earlier, name))
        journal.log("run_begun", rows=job.rows, detail=record.fingerprint)
        write_record(lease, record)
        watcher.say(f"{counted(job.rows, 'row')}, {counted(job.queries, 'query', 'queries')}, {job.attributed}")
        if job.making is not None:
            watcher.say(job.making)
        for note in job.facts.notes:
            watcher.say(note)
        try:
            witness = Witness(job.directory, lease.owner)
            with witness, connected(job.config.cluster, job.config.output, ahead, guard) as cluster:
                witness.knows(guard.lines)
                solve(job, record, cluster, attempt)  # its frame holds references into Ray, this one does not
            _some_scored(record)
        except BaseException as error:  # an interrupt too: whoever looks at the run must not think that it goes on
            end_badly(error, record, lease, attempt)
            if isinstance(error, OSError | FloatingPointError):  # files, stores and gradients: the user's to mend
                cause = getattr(error, "cause", error)  # under what Ray puts around it
                raise RunFailedError(f"{type(cause).__name__}: {one_line(cause)[:500]}") from error
            raise
        end_well(record, attempt)
        run = open_run(job.directory.url, job.directory.options)
        write_by(run, watcher.say)
        write_report(run)
        _finish(job, run)
    return run


def _some_scored(record: RunRecord) -> None:
    """Raises `RunFailedError` where no row has a score: a run that gave nothing has failed."""
    assert record.counts is not None
    if not record.counts.status.get(OK):
        first = next((f": {p.id}: {p.status}: {p.detail or 'no more is known'}" for p in record.problems), "")
        raise RunFailedError(f"none of the {counted(record.counts.rows, 'row')} has a score{first}")


def _finish(job: Job, run: Run) -> None:
    """What is left to do when run.json says that a run is done."""
    if not job.directory.exists("report.html"):
        write_report(run)
    remove_checkpoints(job.directory)  # last: until the run is done they are what it goes on from
    for directory in (job.directory, *([job.written_index] if job.written_index is not None else [])):
        directory.remove_temporaries()


def _begun(job: Job) -> RunRecord:
    """The record of a run that begins."""
    facts = job.facts
    return RunRecord(
        state="running",
        config=redacted_tree(job.config.model_dump(mode="json")),
        fingerprint=job.fingerprint,
        identity=job.identity,
        versions=versions(),
        sign=SIGN,
        created=now(),
        counts=Counts(rows=job.rows, queries=job.queries, blocks=len(facts.blocks), parameters=facts.parameters),
        trainable=Trainable(attributed=facts.parameters, total=facts.parameters),
        damped=job.method.damped,
        answers=None if job.earlier is None else Earlier(**job.earlier),
    )
