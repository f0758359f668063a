"""A wrong request: its fields, its line, and the way from a worker to the driver."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from datainf_ray import RequestError, open_run
from datainf_ray.common.redaction import HIDDEN
from datainf_ray.config import load_config, parse_assignment
from datainf_ray.corpus.find import find_files

MINIMAL: dict[str, Any] = {
    "model": {"base": "org/base", "adapter": "./adapter"},
    "train": {"path": "rows.jsonl"},
    "queries": {"path": "queries.jsonl"},
    "output": "runs/a",
}


def configure(**overrides: Any) -> Any:
    return lambda folder: load_config(MINIMAL, **overrides)


def from_file(text: str | None) -> Any:
    def ask(folder: Path) -> None:
        if text is not None:
            (folder / "c.yaml").write_text(text)
        load_config(folder / "c.yaml")

    return ask


#: What is asked for; then key, value, problem and remedy, in which {} is the test's folder.
WRONG: dict[str, tuple[Any, tuple[str, Any, str, str | None]]] = {
    "a key": (configure(method={"dampin": 1}), ("method.dampin", None, "unknown key", "did you mean 'damping'?")),
    "a value": (
        configure(**{"cluster.max_workers": 0}),
        ("cluster.max_workers", 0, "a whole number of at least 1, or null", None),
    ),
    "nothing": (configure(output=None), ("output", "null", "a text that is not empty", None)),
    "an empty text": (configure(output=""), ("output", "''", "a text that is not empty", None)),
    "two keys": (
        configure(**{"cluster.min_workers": 5, "cluster.max_workers": 2}),
        ("cluster.min_workers", 5, "is more than max_workers, 2", None),
    ),
    "a method": (
        configure(**{"method.name": "representations"}),
        ("method.name", "representations", "unknown method", "did you mean 'representation'?"),
    ),
    "another method": (
        configure(**{"method.name": "tracin"}),
        (
            "method.name",
            "tracin",
            "unknown method",
            "known are datainf, hessian-free, cosine, exact, lissa, representation",
        ),
    ),
    "a secret": (
        configure(storage_options={"s3": "AKIAIOSFODNN7EXAMPLE"}),
        ("storage_options.s3", None, "a mapping of texts to values", None),
    ),
    "an assignment": (
        lambda folder: parse_assignment("seed"),
        ("--set", "seed", "is not KEY=VALUE", "an example is --set cluster.max_workers=2"),
    ),
    "no configuration": (from_file(None), ("config", "{}/c.yaml", "no such configuration file", None)),
    "no file": (
        lambda folder: find_files([f"{folder}/x.jsonl"], "train.path"),
        ("train.path", "{}/x.jsonl", "no such file or directory", None),
    ),
    "a signed address": (
        lambda folder: find_files(["nope://user:hunter2@host/x?sig=abcdefgh"], "train.path"),
        ("train.path", f"nope://user:{HIDDEN}@host/x?sig={HIDDEN}", "", None),
    ),
    "no run": (
        lambda folder: open_run(str(folder)),
        ("run", "{}", "is not a run directory: there is no run.json in it", None),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_program_reads_the_fields_and_a_person_the_line(case: str, tmp_path: Path) -> None:
    ask, (key, value, problem, remedy) = WRONG[case]
    with pytest.raises(RequestError) as caught:
        ask(tmp_path)
    error = caught.value
    where = value.replace("{}", str(tmp_path)) if isinstance(value, str) else value
    assert (error.key, error.value, error.remedy) == (key, where, remedy)
    assert error.problem == problem or not problem
    shown = [] if value is None else [str(where) or "''"]
    assert str(error) == ": ".join([key, *shown, error.problem]) + (f"; {remedy}" if remedy else "")


def test_the_line_begins_with_the_file_that_the_key_is_in(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        from_file("seed: -1\n")(tmp_path)
    assert caught.value.key == "model"
    assert str(caught.value) == f"{tmp_path}/c.yaml: model: missing; it must be given"


@pytest.mark.parametrize("remedy", [None, "give another"])
def test_it_is_the_same_when_it_was_pickled(remedy: str | None) -> None:
    error = RequestError("model.base", ["a", "b"], "cannot be loaded: https://me:hunter2@host", remedy, "c.yaml")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RequestError
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert "hunter2" not in repr(error) + str(vars(error))


def test_ray_raises_it_with_its_fields() -> None:
    error = RequestError("model.base", "a/b", "cannot be loaded", "give another")
    task = pickle.loads(pickle.dumps(RayTaskError("load", "a traceback", error, "ray::load", 1, "127.0.0.1")))
    raised = task.as_instanceof_cause()
    assert isinstance(raised, RequestError)
    assert (raised.key, raised.value, raised.remedy) == ("model.base", "a/b", "give another")
    assert str(pickle.loads(pickle.dumps(task)).cause) == "model.base: a/b: cannot be loaded; give another"


def test_of_a_line_the_key_is_known() -> None:
    error = RequestError.of_line("model.base: a/b: cannot be loaded; give another")
    assert error.key == "model.base"
    assert str(error) == "model.base: a/b: cannot be loaded; give another"
