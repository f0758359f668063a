"""`datainf show` and `datainf top`: rows whole, ranks against a loop, and nothing on a terminal that is not seen."""

from __future__ import annotations

import builtins
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datainf_ray
from tests.curate.conftest import Make, rows_of, write
from tests.runs_of import status_of

WORDS = " ".join(f"word{n}" for n in range(300))
LONG = f"The answer, whole. {WORDS}\x1b[2J\u202eand its end\n\tindented"
ROWS, QUERIES = 40, 3


def corpus() -> list[dict[str, Any]]:
    rows = [{**row, "id": f"row-{row['n']}", "source": f"s{row['n'] % 2}"} for row in rows_of(ROWS)]
    for number in (5, 17, 23):
        rows[number]["prompt"] = f"Which of these many words are the same in both of the rows? {number}"
        rows[number]["completion"] = LONG
    rows[30]["id"] = "row-31"
    return rows


@pytest.fixture
def influence() -> np.ndarray:
    values = np.random.default_rng(3).normal(size=(ROWS, QUERIES)) * [1, 10, 100]
    values[6, 1] = values[9, 1] = values[12, 1]
    values[20] = np.nan
    values[7, 2] = 0
    return values.astype(np.float32)


@pytest.fixture
def run(make: Make, tmp_path: Path, influence: np.ndarray) -> datainf_ray.Run:
    write(tmp_path / "a.jsonl", corpus())
    return make("a.jsonl", influence.copy(), ids=[row["id"] for row in corpus()], results={"top_k": 4})


def unseen(text: str) -> set[str]:
    return set("\x1b\u202e\x07\u200b") & set(text)


def test_a_row_is_shown_whole(
    run: datainf_ray.Run, influence: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked in ("row-17", "17"):
        assert status_of(monkeypatch, "show", run.url, asked) == 0
        page = capsys.readouterr().out
        assert not unseen(page)
        assert page.startswith("row 17 · row-17\n")
        assert "status ok" in page
        assert "── prompt ──\nWhich of these many words" in page
        assert WORDS + "\\x1b[2J\\u202eand its end\n\tindented\n" in page
        assert "source: s1" in page
        assert "row 5 · a.jsonl#5: " in page
        assert "row 23 · a.jsonl#23: " in page
        assert "row 6 ·" not in page
    assert status_of(monkeypatch, "show", run.url, "row-17", "--format", "json") == 0
    text = capsys.readouterr().out
    assert not unseen(text)
    told = json.loads(text)
    assert told["parts"][1] == {"role": "completion", "text": LONG}
    assert (told["row"], told["columns"]["n"], told["known"]["tokens"]) == (17, 17, 12)
    assert [one["row"] for one in told["neighbours"]] in ([5, 23], [23, 5])


def test_ranks_are_those_of_a_loop(run: datainf_ray.Run, influence: np.ndarray) -> None:
    values = influence.astype(np.float64)
    mean = (values / np.sqrt(np.nanmean(values**2, axis=0))).mean(axis=1)
    each = np.concatenate([mean[:, None], values], axis=1)
    for row in (0, 6, 7, 9, 12, 39):
        shown = run.row(row, neighbours=False)
        assert shown.influence is not None
        assert [one.query for one in shown.influence] == [None, 0, 1, 2]
        for one, column in zip(shown.influence, each.T, strict=True):
            assert one.influence == pytest.approx(column[row])
            if column[row] == 0:
                assert (one.side, one.rank) == (None, None)
                continue
            side = np.sign(column[row])
            order = sorted((n for n in range(ROWS) if column[n] * side > 0), key=lambda n: (-side * column[n], n))
            assert (one.side, one.rank, one.of) == (
                "harmful" if side > 0 else "helpful",
                order.index(row) + 1,
                len(order),
            )
    empty = run.row(20, neighbours=False)
    assert empty.influence == []
    assert empty.known["status"] == "no_target_tokens"
    assert "no score" in str(empty)


def test_who_speaks_in_a_talk_is_said(make: Make, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "Be\x07 brief."}, {"role": "user", "content": f"Hi {n}"},
                      {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]}
        for n in range(4)
    ]  # fmt: skip
    write(tmp_path / "a.jsonl", rows)
    shown = make("a.jsonl", [1.0, 2, 3, 4]).row(2)
    assert shown.parts[:2] == [("system", "Be\x07 brief."), ("user", "Hi 2")]
    assert shown.parts[2][0] == "assistant"
    assert '"name": "f"' in shown.parts[2][1]
    assert "── user ──\nHi 2\n" in str(shown)
    assert not unseen(str(shown))


def test_without_the_library_it_says_so(run: datainf_ray.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "rensa":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    shown = run.row(17)
    assert shown.neighbours is None
    assert shown.lines()[-1] == (
        "nearly alike rows are not looked for: it needs a package that is not installed; "
        "pip install 'datainf-ray[curate]'"
    )


def test_a_run_without_scores_shows_the_rest(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", corpus())
    run = make("a.jsonl", np.arange(40.0), results={"scores": False})
    shown = run.row(3, neighbours=False)
    assert shown.influence is None
    assert "stored no scores" in str(shown)


WRONG: dict[str, tuple[str, str]] = {
    "no such row": ("show {0} nobody", "row: nobody: no row has this id; or a number from 0 to 39"),
    "beyond the last": ("show {0} 40", "row: 40: no row has this id"),
    "two of an id": ("show {0} row-31", "row: row-31: is the id of 2 rows; name one by its number: 30, 31"),
    "no k": ("top {0} --query all -k 0", "-k"),
    "no such query": ("top {0} --query alle", "query: alle: no query has this id"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(
    case: str, run: datainf_ray.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = WRONG[case]
    assert status_of(monkeypatch, *arguments.replace("{0}", run.url).split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("harmful", [False, True])
@pytest.mark.parametrize("k", [3, 40])
def test_top_of_all_queries_is_by_the_mean_in_root_mean_squares(
    run: datainf_ray.Run, influence: np.ndarray, harmful: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datainf_ray.runs.scores.BLOCK", 8)  # portions meet
    values, sign = influence.astype(np.float64), 1 if harmful else -1
    mean = (values / np.sqrt(np.nanmean(values**2, axis=0))).mean(axis=1)
    want = sorted((n for n in range(ROWS) if sign * mean[n] > 0), key=lambda n: (-sign * mean[n], n))[:k]
    found = run.top("all", k, harmful)
    assert found["row"].to_pylist() == want
    assert found["rank"].to_pylist() == list(range(1, len(want) + 1))
    np.testing.assert_allclose(found["influence"].to_numpy(), mean[want], rtol=1e-6)
    assert set(found["query"].to_pylist()) == {None}
    assert found["id"].to_pylist() == [corpus()[n]["id"] for n in want]
    gone = run.selected(drop=min(k, len(want)), because="harmful" if harmful else "helpful", gone=True)
    assert sorted(gone["row"].to_pylist()) == sorted(want)  # curate takes the same rows


def test_top_with_whole_texts_and_beyond_the_stored_ones(
    run: datainf_ray.Run, influence: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = ("top", run.url, "--query", "all", "-k", 40, "--text", "full")
    pages = ""
    for more in ((), ("--harmful",)):
        assert status_of(monkeypatch, *asked, *more) == 0
        pages += capsys.readouterr().out
    assert "all 3 queries: the mean of the influences, in RMS" in pages
    assert not unseen(pages)
    assert pages.count("\\x1b[2J\\u202eand its end") == 3
    assert pages.count(WORDS) == 3
    assert status_of(monkeypatch, "top", run.url, "--query", "1", "-k", "15", "--text", "full", "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    order = np.argsort(influence[:, 1], kind="stable")
    assert [row["row"] for row in told] == order[:15].tolist()
    assert all(row["text"].startswith("prompt:\n") for row in told)
    assert status_of(monkeypatch, "top", run.url, "--format", "csv") == 0
    assert next(csv.reader(io.StringIO(capsys.readouterr().out)))[-1] == "preview"
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "moved" / "a.jsonl")
    assert status_of(monkeypatch, *asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: train.path: ")
    assert status_of(monkeypatch, *asked, "--set", f"train.path={tmp_path}/moved/a.jsonl") == 0
    capsys.readouterr()
    write(tmp_path / "a.jsonl", [*corpus()[1:], corpus()[0]])
    for command in (asked, ("show", run.url, "3")):
        assert status_of(monkeypatch, *command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "has changed since" in line


def test_a_query_called_all_is_that_query(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", corpus())
    run = make("a.jsonl", np.arange(40.0) + 1)
    queries = run.queries().set_column(1, "id", [["all"]])
    run.queries = lambda: queries  # type: ignore[method-assign]
    assert run.top("all", 2, harmful=True)["query"].to_pylist() == [0, 0]
