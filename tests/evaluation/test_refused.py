"""What `datainf_ray.evaluate` refuses: wrong requests, runs that do not go together, corpora that have changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datainf_ray
from datainf_ray.common.errors import RequestError
from tests.evaluation.conftest import Evaluated, make, sign, write_corpora


def change_a_row(evaluated: Evaluated) -> None:
    evaluated.rows[3]["prompt"] = "another"
    write_corpora(evaluated.folder, evaluated.rows, evaluated.queries)


def lose_rows(evaluated: Evaluated) -> None:
    (evaluated.folder / "sft-02.parquet").unlink()


def change_queries(evaluated: Evaluated) -> None:
    evaluated.queries[0]["prompt"] = "another"
    write_corpora(evaluated.folder, evaluated.rows, evaluated.queries)


def rename_unsigned(evaluated: Evaluated) -> None:
    """As a run of a version that wrote no digest, whose rows are known by their ids."""
    run = evaluated.folder / "run" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"identity": {}}))
    (evaluated.folder / "sft-02.parquet").rename(evaluated.folder / "sft-03.parquet")


def other_rows(evaluated: Evaluated) -> None:
    other = evaluated.folder / "elsewhere"
    other.mkdir()
    make(other)
    rows = [row | {"prompt": "p"} for row in evaluated.rows]
    write_corpora(other, rows, evaluated.queries)
    sign(replace(evaluated.made, run=datainf_ray.open_run(str(other / "run"))))


def grouped(evaluated: Evaluated) -> None:
    """One query of rows of several classes."""
    run = evaluated.folder / "run" / "run.json"
    document = json.loads(run.read_text())
    document["config"]["queries"]["group"] = "all"
    run.write_text(json.dumps(document))


def unfinished(evaluated: Evaluated) -> None:
    run = evaluated.folder / "run" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"state": "interrupted", "reason": "somebody"}))


#: What is done to the run's files, what is asked, and what is said of it.
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing asked": (None, {}, "evaluate: want one of --truth COLUMN and --same COLUMN"),
    "both asked": (None, {"truth": "flipped", "same": "topic"}, "evaluate: want one of --truth COLUMN"),
    "no such column": (
        None, {"truth": "fliped"},
        "sft-00.parquet, which has prompt, completion, flipped, topic, bad; did you mean 'flipped'?",
    ),
    "no such column in the queries": (None, {"same": "flipped"}, "--same: flipped: no such column in"),
    "no boolean": (
        None, {"truth": "topic"},
        "--truth: topic: row sft-00.parquet#0 has 'a', no boolean, 0 or 1; name the value of the rows that are to be "
        "found: --truth topic=VALUE",
    ),
    "a null": (None, {"truth": "bad"}, "--truth: bad: row sft-00.parquet#7 has null, no boolean, 0 or 1"),
    "NaN, which is no boolean": (
        lambda e: (e.rows.__setitem__(slice(None), [r | {"nan": float(n % 2) if n else np.nan}
                                                    for n, r in enumerate(e.rows)]),
                   write_corpora(e.folder, e.rows, e.queries), sign(e.made)),
        {"truth": "nan"}, "--truth: nan: row sft-00.parquet#0 has null, no boolean, 0 or 1",
    ),
    "no such value": (
        None, {"truth": "topic=d"}, "--truth: topic=d: none of 40 rows has that value; its values are a, b, c",
    ),
    "no class in common": (
        lambda e: (e.queries.__setitem__(slice(None), [q | {"topic": "z"} for q in e.queries]),
                   write_corpora(e.folder, e.rows, e.queries), sign(e.made)),
        {"same": "topic"}, "--same: topic: no training row is of a query's class; the queries' are z",
    ),
    "a query of two classes": (
        grouped, {"same": "topic"}, "--same: topic: query all has rows of a and b; a query's rows must have one class",
    ),
    "k of nothing": (None, {"truth": "flipped", "k": [0]}, "-k: 0: want at least 1"),
    "one resample": (None, {"truth": "flipped", "resamples": 1}, "--resamples: 1: want 0, or at least 2"),
    "a seed below zero": (None, {"truth": "flipped", "seed": -1}, "--seed: -1: want 0 or more"),
    "a side of its own": (None, {"truth": "flipped", "side": "harmfull"}, "no such side; did you mean 'harmful'?"),
    "changed": (change_a_row, {"truth": "flipped"}, "has changed since "),
    "fewer rows": (lose_rows, {"truth": "flipped"}, "it has 32 rows, and the run 40"),
    "changed queries": (change_queries, {"same": "topic"}, "queries.path: "),
    "other ids": (
        rename_unsigned, {"truth": "flipped"}, "row 32 is sft-03.parquet#0, and was sft-02.parquet#0",
    ),
    "gone": (lambda e: [f.unlink() for f in e.folder.glob("sft-*")], {"truth": "flipped"}, "train.path: "),
    "not done": (unfinished, {"truth": "flipped"}, "is 'interrupted': somebody"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str, evaluated: Evaluated) -> None:
    spoil, asked, said = WRONG[case]
    if spoil is not None:
        spoil(evaluated)
    with pytest.raises(RequestError) as caught:
        datainf_ray.evaluate(evaluated.url, bm25=False, **asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_on_other_rows_or_other_queries_are_refused(evaluated: Evaluated, tmp_path: Path) -> None:
    other_rows(evaluated)
    other = str(tmp_path / "elsewhere" / "run")
    with pytest.raises(RequestError, match=rf"run: {other}: its training rows are not those of {evaluated.url}"):
        datainf_ray.evaluate(evaluated.url, other, truth="flipped", bm25=False)
    (tmp_path / "third").mkdir()
    third = make(tmp_path / "third")
    third.queries[0]["prompt"] = "another"
    write_corpora(third.folder, third.rows, third.queries)
    sign(third.made)
    with pytest.raises(RequestError, match="its queries are not those of"):
        datainf_ray.evaluate(evaluated.url, third.url, same="topic", bm25=False)
    found = datainf_ray.evaluate(evaluated.url, third.url, truth="flipped", bm25=False, resamples=0)
    assert len([line for line in found.lines if line.run == third.url]) == 2
