"""The stage before the first sweep where queries are prompts: their pictures are made, or found in the run directory.

The tables follow from the configuration and from these pictures, whose digests run.json has.
"""

from __future__ import annotations

from datainf_ray.cluster.picture_sweep import kept_pictures, make_missing
from datainf_ray.cluster.pool import Pool
from datainf_ray.common.words import printable
from datainf_ray.corpus.pictures import made_name
from datainf_ray.runs.checkpoints import remove_checkpoints
from datainf_ray.runs.directory import MADE
from datainf_ray.runs.record import RunRecord
from datainf_ray.session.attempt import Attempt

_NAMED = 3  # rows of which no picture could be made


def with_pictures(record: RunRecord, pool: Pool, attempt: Attempt) -> None:
    """See to it that the run directory has a picture of each query, and that run.json says which.

    A picture that is there is kept. Where one that run.json knows was lost and its successor is another, as another
    device would make it, the run begins again: what it had solved was solved for the first.
    """
    spec = pool.spec
    rows = spec.corpora["queries"].rows
    found = kept_pictures(spec, record.pictures)
    missing = [row for row in range(rows) if row not in found]
    if missing:
        taken, why = make_missing(pool, spec, missing, attempt.watcher, attempt.pulse)
        record.sweeps[:] = [taken, *(sweep for sweep in record.sweeps if sweep.id != taken.id)]
        for row, reason in sorted(why.items())[:_NAMED]:
            attempt.watcher.say(f"query row {row:,}: no picture could be made of it: {printable(reason, 300)}")
        found = kept_pictures(spec, {})
    now = {f"{MADE}/{made_name(row)}": known for row, known in found.items()}
    lost = [name for name, known in record.pictures.items() if now.get(name) != known]
    if lost:
        attempt.watcher.say(f"{lost[0]} is not the picture that the run had made; it begins again with another")
        remove_checkpoints(pool.spec.directory)
    record.pictures = now
    attempt.keep()
