"""Where a run keeps what it has solved until it is done, and which files there are its own."""

from __future__ import annotations

import re

from datainf_ray.runs.directory import SCRATCH, RunDirectory

CHECKPOINTS = "checkpoints"
SCORES = "scores"  #: what the sweeps are called that commit scores

#: The names that a run gives to files in there: of states, of sums, of chunks' scores; and of files that were not
#: finished. `projected/` is the scratch directory of a run that compares a projected index with its own scores, and
#: `combined/` has what a combination of runs knows of the parts it has written.
_OURS = re.compile(
    rf"(projected/(checkpoints/)?)?("
    r"[a-z0-9-]+\.json|[a-z]+\.parquet|[a-z0-9-]+-[a-z]+-\d{4,}\.safetensors|"
    r"sums/[a-z0-9-]+\.json|sums/[a-z0-9-]+/\d{2}-\d{6,}-\d{4,}\.safetensors(\.parquet)?|"
    r"combined/part-\d{6,}\.(json|top(\.parquet)?)|"
    rf"scores/chunk-\d{{6,}}\.parquet|{re.escape(SCRATCH)}/.*\.tmp)"
)


def remove_checkpoints(directory: RunDirectory) -> None:
    """Take the checkpoints of a finished run away, and nothing else that may lie beside them."""
    directory.remove_files(CHECKPOINTS, _OURS)


def forget_scores(directory: RunDirectory) -> None:
    """Take away what says which chunks have been scored: each is looked at again, and scored if need be."""
    for name in directory.list(f"{CHECKPOINTS}/sums/"):
        if name.startswith(f"{CHECKPOINTS}/sums/{SCORES}-") and name.endswith(".json"):
            directory.remove(name)
