"""Influence by a column of the corpus, against loops over the rows; and what is refused in a line."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import datainf_ray
from datainf_ray.common.words import json_text
from datainf_ray.curate import by as module
from datainf_ray.runs.by import stored_by, stored_values
from tests.curate.conftest import Make, rows_of, write
from tests.runs_of import status_of

HOSTILE = "\x1b[31mred\u202e"


def sourced(count: int, first: int = 0) -> list[dict[str, Any]]:
    sources = ["web", HOSTILE, None, "books", "one"]
    return [
        {**row, "source": "once" if row["n"] == 7 else sources[row["n"] % 5], "good": row["n"] % 2 == 0,
         "score": row["n"] % 3 / 2, "meta": {"who": "ab"[row["n"] % 2]}, "tags": ["x"]}
        for row in rows_of(count, first)
    ]  # fmt: skip


@pytest.fixture
def influence() -> np.ndarray:
    values = np.random.default_rng(0).normal(1e3, 1, size=(60, 2)) * [1, -1e-3]
    values[[4, 9, 30]] = np.nan
    return values.astype(np.float32)


@pytest.fixture
def run(make: Make, tmp_path: Path, influence: np.ndarray) -> datainf_ray.Run:
    write(tmp_path / "a.jsonl", sourced(40))
    write(tmp_path / "b.parquet", sourced(20, 40))
    return make(["a.jsonl", "b.parquet"], influence.copy())


COLUMNS: dict[str, Any] = {
    "source": lambda row: row["source"],
    "good": lambda row: str(row["good"]).lower(),
    "score": lambda row: {0: "0", 0.5: "0.5", 1: "1"}[row["score"]],
    "meta.who": lambda row: row["meta"]["who"],
    "n": lambda row: str(row["n"]),
    "file": lambda row: "a.jsonl" if row["n"] < 40 else "b.parquet",
}


@pytest.mark.parametrize("column", COLUMNS)
def test_sums_means_and_intervals_are_those_of_a_loop(
    column: str, run: datainf_ray.Run, influence: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datainf_ray.runs.scores.BLOCK", 16)  # portions meet
    values = influence.astype(np.float64)
    rms = np.sqrt(np.nanmean(values**2, axis=0))
    each = {None: (values / rms).mean(axis=1), 0: values[:, 0], 1: values[:, 1]}
    found = run.by(column).to_pylist()
    assert [row["query"] for row in found] == sorted([row["query"] for row in found], key=lambda q: (q is not None, q))
    rows = sourced(60)
    for query, numbers in each.items():
        mine = [row for row in found if row["query"] == query]
        kinds = {COLUMNS[column](row) for row in rows}
        ends = {"a.jsonl", "b.parquet"}
        names = {row["value"] if column != "file" else Path(row["value"]).name for row in mine}
        assert names == kinds, ends
        sums = [row["sum"] for row in mine]
        assert sums == sorted(sums, reverse=True)
        for row in mine:
            name = Path(row["value"]).name if column == "file" else row["value"]
            own = [float(x) for x, one in zip(numbers, rows, strict=True) if COLUMNS[column](one) == name]
            scored = [x for x in own if not math.isnan(x)]
            assert (row["rows"], row["scored"]) == (len(own), len(scored))
            assert row["sum"] == pytest.approx(math.fsum(scored), rel=1e-12)
            if not scored:
                assert row["mean"] is None
                continue
            assert row["mean"] == pytest.approx(statistics.fmean(scored), rel=1e-12)
            if len(scored) == 1:
                assert (row["low"], row["high"]) == (None, None)
                continue
            half = 1.96 * statistics.stdev(scored) / math.sqrt(len(scored))
            assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-4)
            assert row["mean"] - row["low"] == pytest.approx(half, rel=1e-4)
        side = math.fsum(s for s in sums if (s > 0) == (sums[0] > 0))
        assert mine[0]["share"] == pytest.approx(sums[0] / side)


def test_the_command(
    run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("by", run.url, "--column", "source")
    assert status_of(monkeypatch, *asked) == 0
    page = capsys.readouterr().out
    assert "influence on all queries, in RMS, by source; positive: harmful" in page
    assert "(null)" in page
    assert "[31mred" in page
    assert "95 % (normal)" in page
    assert not set("\x1b\u202e") & set(page)
    assert status_of(monkeypatch, *asked, "--query", "1", "--format", "json") == 0
    told = capsys.readouterr().out
    assert not set("\x1b\u202e") & set(told)
    assert json.loads(told) == run.by("source", 1).to_pylist()
    assert HOSTILE in [row["value"] for row in json.loads(told)]
    assert status_of(monkeypatch, *asked, "--format", "csv") == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["query"] for line in lines] == [""] * 6 + ["0"] * 6 + ["1"] * 6
    to = tmp_path / "by.parquet"
    assert status_of(monkeypatch, *asked, "--to", to) == 0
    assert capsys.readouterr().out == f"18 rows: {to}\n"
    assert pq.read_table(to).to_pylist() == run.by("source").to_pylist()
    assert status_of(monkeypatch, *asked, "--to", to) == 2
    assert "--to: " in (said := capsys.readouterr().err)
    assert "is there already" in said


WRONG: dict[str, tuple[list[str], str]] = {
    "no such column": (["--column", "sources"], "--column: sources: no such column in "),
    "a list": (["--column", "tags"], "--column: tags: row 0 has a list there; name a column of texts, numbers or bool"),
    "an object": (["--column", "meta"], "--column: meta: row 0 has an object there"),
    "no such query": (["--column", "n", "--query", "x"], "query: x: no query has this id"),
    "no Parquet": (["--column", "n", "--to", "by.csv"], "--to: by.csv: is called as no Parquet file is; end it in"),
    "no such place": (["--column", "n", "--to", "/proc/none/by.parquet"], "--to: /proc/none/by.parquet: cannot be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(
    case: str, run: datainf_ray.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = WRONG[case]
    assert status_of(monkeypatch, "by", run.url, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_too_many_values_are_refused(run: datainf_ray.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", 59)
    with pytest.raises(datainf_ray.RequestError, match="--column: n: has more than 59 values; name a column that"):
        run.by("n")
    monkeypatch.setattr(module, "_LONGEST", 5)
    with pytest.raises(datainf_ray.RequestError, match="row 0 has a text of 12 characters there, by which none is"):
        run.by("prompt")


def test_the_values_of_the_rows_that_a_run_lists_are_stored_beside(make: Make, tmp_path: Path) -> None:
    rows = sourced(40)
    rows[7]["source"] = None
    write(tmp_path / "a.jsonl", rows)
    influence = np.random.default_rng(2).normal(size=(40, 2)).astype(np.float32)
    influence[7] = 99
    run = make("a.jsonl", influence, results={"by": "source", "top_k": 4})
    module.write_by(run, print)
    listed = sorted({*run.tops()["row"].to_pylist()})
    assert 4 < len(listed) < 17
    assert stored_values(run) == {row: rows[row]["source"] for row in listed}
    assert stored_values(run)[7] is None
    stored = stored_by(run)
    assert stored is not None
    assert stored.equals(run.by("source"))


def test_a_run_that_cannot_be_grouped_is_done_without(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", sourced(20))
    run = make("a.jsonl", np.arange(20.0), results={"by": "tags"})
    said: list[str] = []
    module.write_by(run, said.append)
    assert stored_by(run) is None
    assert [line.partition("; ")[0] for line in said] == [
        "by.parquet is left out: --column: tags: row 0 has a list there"
    ]


def test_a_corpus_that_has_changed_is_refused(run: datainf_ray.Run, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", sourced(40, 1))
    with pytest.raises(datainf_ray.RequestError, match="has changed since"):
        run.by("source")


def test_of_one_query_there_are_no_rows_of_all(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", sourced(20))
    run = make("a.jsonl", np.arange(20.0))
    assert set(run.by("source")["query"].to_pylist()) == {0}
    assert run.by("source", "all").equals(run.by("source"))
    assert stored_by(run) is None


def test_json_for_a_terminal_is_json() -> None:
    value = {"a": f"{HOSTILE}\x9b\U000e0041é\ud800\\u202e\n", "b": [1, None]}
    text = json_text(value, indent=1)
    assert json.loads(text) == value
    assert "é" in text
    assert not set("\x1b\u202e\x9b\U000e0041\ud800") & set(text)
