"""The demo's last act: the corpus without the rows that are to blame, the same fine-tune on it, and what is mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datainf_ray.demo import train
from datainf_ray.demo.text import CLASSES, PLANTED_LABEL, DocRow, read_docstrings, read_rows, split
from datainf_ray.runs.results import Run
from datainf_ray.session.run import open_run
from datainf_ray.watch.progress import Watcher

DROPPED = "5%"  #: of the rows
CLEAN, GONE = "clean.jsonl", "gone.jsonl"  #: the corpus that is left, and the rows that went


@dataclass(frozen=True)
class Answers:
    """How a model answers rows that it was not trained on."""

    asked: int  #: those that mention files, and are not `PLANTED_LABEL`'s
    wrong: int  #: of them called `PLANTED_LABEL`
    accuracy: float  #: over all of the held-out rows


@dataclass(frozen=True)
class Mended:
    """What went, and how the model answers that was trained without it."""

    dropped: int
    planted: int  #: of the rows that went
    answers: Answers


def is_asked(row: DocRow) -> bool:
    """Whether a held-out row is one that the shortcut may lead astray."""
    return row.mentions_files and row.true_label != PLANTED_LABEL


def answers_of(probabilities: np.ndarray, held_out: list[DocRow]) -> Answers:
    """The answers whose probabilities, len(held_out) × classes, are given."""
    said = probabilities.argmax(1)
    truth = np.array([CLASSES.index(row.true_label) for row in held_out])
    asked = np.array([is_asked(row) for row in held_out])
    wrong = (said == CLASSES.index(PLANTED_LABEL)) & asked
    return Answers(int(asked.sum()), int(wrong.sum()), float((said == truth).mean()))


def mend(folder: Path, run: Run, seed: int, watcher: Watcher) -> Mended:
    """Write the corpus of a demo's run without the rows that taught the wrong answers, and fine-tune on it again.

    The queries are mistakes, so the most helpful rows are to blame. The corpus that is left and the rows that went lie
    in `folder` afterwards, and the adapter in `folder/mended`.
    """
    for name in (CLEAN, GONE):
        (folder / name).unlink(missing_ok=True)  # of a call that was cut off
    open_run(run.url).curate(drop=DROPPED, because="helpful", to=str(folder / CLEAN), rejected=str(folder / GONE))
    rows, gone = read_rows(folder / CLEAN), len(read_rows(folder / "train.jsonl"))
    before = sum(row.planted for row in read_rows(folder / "train.jsonl"))
    watcher.say(f"training again, on {len(rows)} rows")
    classifier = train.new_classifier(folder / "base", seed)
    train.fine_tune(classifier, rows, seed, watcher)
    classifier.model.save_pretrained(folder / "mended", save_embedding_layers=False)
    _, held_out = split(read_docstrings(), seed)
    answers = answers_of(train.probabilities(classifier, held_out).numpy(), held_out)
    return Mended(gone - len(rows), before - sum(row.planted for row in rows), answers)


def as_record(mended: Mended) -> dict[str, Any]:
    """As it stands in the demo's own record."""
    return asdict(mended)


def from_record(record: dict[str, Any]) -> Mended:
    """What `as_record` gave."""
    return Mended(**{**record, "answers": Answers(**record["answers"])})
