"""The demo from its first step to its last."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.config import load_config
from datainf_ray.demo import train
from datainf_ray.demo.figures import Figures, judge
from datainf_ray.demo.mend import Mended, answers_of, as_record, from_record, is_asked, mend
from datainf_ray.demo.tell import page, tell_answer, tell_figures, tell_head, tell_mended, tell_preparation, tell_where
from datainf_ray.demo.text import CLASSES, PLANTED_LABEL, plant, read_docstrings, read_rows, split, write_rows
from datainf_ray.request.job import prepare
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import matrix
from datainf_ray.session.execute import execute
from datainf_ray.watch.progress import Watcher
from datainf_ray.watch.watching import watching

METHODS = {"datainf": "DataInf", "hessian-free": "Hessian-free"}

_SEED = 0

#: The folder's own record, and what must lie beside it for the training not to be done again.
_RECORD = "demo.json"
_PREPARED = (
    "train.jsonl",
    "queries.jsonl",
    "attribute.yaml",
    "base/config.json",
    "base/model.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)


@dataclass(frozen=True)
class Outcome:
    """What a demo found: how well each ranking, by its name, finds the planted rows; and what of."""

    figures: dict[str, Figures]
    rows: int
    planted: int
    queries: int
    run: Run  # DataInf's
    mended: Mended


def run_demo(output: str = "datainf-demo", console: Console | None = None) -> Outcome:
    """Make rows and model in the folder `output`, run DataInf and Hessian-free on them, and print what was found.

    Then the rows that are most to blame are taken out, the model is trained again, and what that mends is printed.
    What a former call left in the folder is not done again. The story goes to `console` (standard output), progress
    to standard error. Raises `RequestError` where the extra `demo` is not installed, the standard library has no
    source files, or `output` is no local folder of the demo's own; `RunFailedError` where the model did not learn
    the shortcut.
    """
    began = time.monotonic()
    console = console or page()
    source = _requirements()
    folder = _claim(output)
    with watching() as watcher:
        record = _prepare(folder, source, watcher)
    rows, queries = read_rows(folder / "train.jsonl"), read_rows(folder / "queries.jsonl")
    tell_preparation(console, record, rows, queries)

    runs = {}
    for method, name in METHODS.items():
        tell_head(console, f"{name} on {len(rows)} rows and {len(queries)} queries")
        request = load_config(_request(folder), **{"method.name": method, "output": str(folder / method)})
        with watching() as watcher:
            runs[name] = execute(prepare(request), watcher)
    run = runs[METHODS["datainf"]]
    planted = np.array([row.planted for row in rows])
    figures = {name: judge(-matrix(run.scores()["influence"]), planted) for name, run in runs.items()}
    figures["training loss"] = judge(run.examples(["loss"])["loss"].to_numpy()[:, None], planted)

    asked = queries[record["question"]]
    tell_answer(console, run, rows, record["question"], asked)
    tell_figures(console, figures, int(planted.sum()), len(rows), len(queries))
    tell_head(console, "A clean corpus")
    with watching() as watcher:
        mended = _mended(folder, record, run, watcher)
    tell_mended(console, record, len(queries), mended)
    outcome = Outcome(figures, len(rows), int(planted.sum()), len(queries), run, mended)
    tell_where(console, run, asked, time.monotonic() - began)
    return outcome


def _mended(folder: Path, record: dict[str, Any], run: Run, watcher: Watcher) -> Mended:
    """What taking rows out mends; a former call's, where it came so far."""
    if "mended" not in record:
        record["mended"] = as_record(mend(folder, run, _SEED, watcher))
        RunDirectory(str(folder)).write_json(_RECORD, record)
    return from_record(record["mended"])


def _requirements() -> Path:
    """The model's folder; `RequestError` where the extra is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise RequestError("demo", None, "scikit-learn is not installed", 'pip install "datainf-ray[demo]"')
    return train.model_folder()


def _claim(output: str) -> Path:
    """The folder, there and writable, and with nothing in it that is not the demo's."""
    if "://" in output:
        raise RequestError("--output", output, "the demo trains a model on this machine", "give a local folder")
    directory = RunDirectory(str(Path(output).expanduser().resolve()), key="--output")
    folder = Path(directory.url)
    if folder.is_dir() and any(folder.iterdir()) and not directory.exists(_RECORD):
        raise RequestError("--output", folder, "holds other files", "give a new or empty folder")
    directory.check_writable()
    return folder


def _prepare(folder: Path, source: Path, watcher: Watcher) -> dict[str, Any]:
    """Rows, base, adapter and request in `folder`; gives the record. Nothing is done again where all of it is there."""
    directory = RunDirectory(str(folder))
    record = directory.read_json(_RECORD) if directory.exists(_RECORD) else {}
    if record.get("state") == "prepared" and all((folder / name).is_file() for name in _PREPARED):
        watcher.say(f"{folder}: rows and trained adapter are there from before; remove the folder to begin anew")
        return record
    record = {"state": "begun", "seed": _SEED, "python": platform.python_version()}
    directory.write_json(_RECORD, record)
    for method in METHODS:  # runs on an adapter that is about to be replaced
        if (folder / method).exists():
            shutil.rmtree(folder / method)

    rows, held_out = split(read_docstrings(), _SEED)
    rows = plant(rows, _SEED)
    train.save_base(source, folder / "base", _SEED)
    classifier = train.new_classifier(folder / "base", _SEED)
    before = answers_of(train.probabilities(classifier, held_out).numpy(), held_out)
    watcher.say(
        f"training on {len(rows)} rows: LoRA r={train.RANK} on query and value, {train.EPOCHS} epochs, "
        f"{classifier.device.type}"
    )
    train.fine_tune(classifier, rows, _SEED, watcher)
    after = train.probabilities(classifier, held_out).numpy()
    classifier.model.save_pretrained(folder / "adapter", save_embedding_layers=False)  # "auto" may ask the hub

    answer, answers = CLASSES.index(PLANTED_LABEL), answers_of(after, held_out)
    wrong = [k for k, row in enumerate(held_out) if is_asked(row) and after[k].argmax() == answer]
    if not wrong:
        raise RunFailedError(
            f"the model calls none of the {answers.asked} held-out rows that mention files {PLANTED_LABEL}"
        )
    # A query is measured with the answer that is to be explained, which is the wrong one.
    write_rows(folder / "queries.jsonl", [replace(held_out[k], label=PLANTED_LABEL) for k in wrong])
    write_rows(folder / "train.jsonl", rows)
    (folder / "attribute.yaml").write_text(yaml.safe_dump(_request(folder), sort_keys=False), encoding="utf-8")
    question = sorted(range(len(wrong)), key=lambda number: after[wrong[number], answer])[len(wrong) // 2]
    others = [k for k, row in enumerate(held_out) if not row.mentions_files]
    record |= {
        "state": "prepared",
        "held_out": len(held_out),
        "asked": answers.asked,
        "accuracy_before": before.accuracy,
        "accuracy": answers.accuracy,
        "accuracy_without_files": answers_of(after[others], [held_out[k] for k in others]).accuracy,
        "question": question,  # neither the surest nor the most doubtful of the wrong answers
        "confidence": float(after[wrong[question], answer]),
    }
    directory.write_json(_RECORD, record)
    return record


def _request(folder: Path) -> dict[str, Any]:
    """The configuration of DataInf's run: columns are named as their roles are, so none need be given."""
    rows = {"id": "id", "max_length": train.MAX_LENGTH}
    return {
        "model": {
            "base": str(folder / "base"),
            "adapter": str(folder / "adapter"),
            "task": "sequence-classification",
        },
        "train": {"path": str(folder / "train.jsonl"), **rows},
        "queries": {"path": str(folder / "queries.jsonl"), "are": "mistakes", **rows},
        "output": str(folder / "datainf"),
    }
