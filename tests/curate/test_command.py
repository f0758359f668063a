"""`datainf curate` as a user meets it: what it says, what it refuses, and that nothing is touched then."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datainf_ray
from datainf_ray.curate import act
from datainf_ray.runs.by import stored_by
from tests import tiny
from tests.curate.conftest import Make, lines_of, rows_of, write
from tests.runs_of import COMMAND, attribute, scores, status_of

ROWS = 20
INFLUENCE = np.arange(ROWS) - 9.5


@pytest.fixture
def run(make: Make, tmp_path: Path) -> datainf_ray.Run:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", rows_of(ROWS))
    return make("data/a.jsonl", INFLUENCE)


def state(folder: Path) -> dict[str, str]:
    """Every file with its content, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def test_it_says_what_it_did(
    run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to, gone = tmp_path / "clean.jsonl", tmp_path / "gone.jsonl"
    asked = ("curate", run.url, "--drop", "10%", "--because", "harmful")
    before = state(tmp_path)
    assert status_of(monkeypatch, *asked, "--dry-run") == 0
    page = capsys.readouterr().out
    assert page.startswith("18 of 20 rows would stay, 2 (10 %) would go\n")
    assert "with them goes 36 % of all harmful influence" in page
    assert "question 19 ⟶ answer 19" in page
    assert state(tmp_path) == before
    assert status_of(monkeypatch, *asked, "--to", to, "--rejected", gone) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"rows: {to}", f"rejected: {gone}"]
    lines = lines_of(to, rows_of(ROWS))
    assert to.read_bytes() == b"".join(lines[:18])
    told = [json.loads(line) for line in gone.read_text().splitlines()]
    assert [(row["n"], row["rank"], row["influence"]) for row in told] == [(18, 2, 8.5), (19, 1, 9.5)]
    assert status_of(monkeypatch, *asked, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 2


def test_without_a_rule_it_says_what_stands_out_and_the_command_that_drops_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.jsonl", rows_of(400))
    draw = np.random.default_rng(0)
    influence = draw.normal(size=(400, 3))
    influence[5:40:5] = draw.uniform(9, 12, (7, 3))
    run = make("a.jsonl", influence, "a run")
    before = state(tmp_path)
    for more in ((), ("--dry-run",)):
        assert status_of(monkeypatch, "curate", run.url, "--because", "harmful", *more) == 0
        page = capsys.readouterr().out.splitlines()
        assert page[0].startswith("7 harmful rows stand out, with ")
        assert page[-1] == f"datainf curate '{run.url}' --because harmful --drop 7 --to NEW --rejected GONE"
    assert status_of(monkeypatch, "curate", run.url, "--because", "helpful") == 0
    page = capsys.readouterr().out.splitlines()
    assert page[0] == "no helpful row stands out of what chance would give"
    assert page[-1].startswith("nothing is suggested; ")
    assert status_of(monkeypatch, "curate", run.url, "--because", "harmful", "--json") == 0
    assert json.loads(capsys.readouterr().out)["suggested"] == 7
    assert status_of(monkeypatch, "curate", run.url) == 2
    assert "are the queries mistakes, or good answers?" in capsys.readouterr().err
    assert status_of(monkeypatch, "curate", run.url, "--because", "harmful", "--near-duplicates") == 2
    assert "says nothing of which rows stay" in capsys.readouterr().err
    drop = ("curate", run.url, "--drop", "auto", "--to", tmp_path / "clean.jsonl", "--because")
    assert status_of(monkeypatch, *drop, "helpful") == 2
    assert "--drop: auto: no helpful row stands out of what chance would give" in capsys.readouterr().err
    assert status_of(monkeypatch, *drop, "harmful", "--across", "max") == 2
    assert "--across: max: does not go with --drop auto" in capsys.readouterr().err
    assert state(tmp_path) == before
    assert status_of(monkeypatch, *drop, "harmful") == 0
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    stay = [line for n, line in enumerate(lines) if not (n % 5 == 0 and 5 <= n < 40)]
    assert (tmp_path / "clean.jsonl").read_bytes() == b"".join(stay)


def test_where_to_cut_several_runs_of_the_same_rows(make: Make, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    write(tmp_path / "a.jsonl", rows_of(300))
    write(tmp_path / "b.jsonl", rows_of(300, 1))
    runs = [make(name, draw.normal(size=300), f"run{n}") for n, name in enumerate(("a.jsonl", "a.jsonl", "b.jsonl"))]
    cut = runs[0].cut(runs[1])
    assert [one.query for one in cut.sides] == [None, None, 0, 0, 1, 1]
    with pytest.raises(datainf_ray.RequestError, match="its training rows are not those of"):
        runs[0].cut(runs[2])


def test_who_is_to_blame_is_asked_for(
    run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(tmp_path)
    assert status_of(monkeypatch, "curate", run.url, "--drop", "1%", "--to", tmp_path / "clean.jsonl") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --because: are the queries mistakes, or good answers? helpful: they are mistakes")
    assert line.endswith("say --because helpful or --because harmful")
    assert state(tmp_path) == before


WRONG: dict[str, tuple[str, str]] = {
    "no place": ("--drop 1", "--to: says nothing of where the rows go"),
    "no rule": ("--to new.jsonl", "says nothing of which rows stay; want one of --drop, --drop-above, "),
    "two rules": ("--drop 1 --select 2 --to new.jsonl", "has --drop and --select"),
    "the corpus": ("--drop 1 --to data/a.jsonl", "--to: {0}/data/a.jsonl: is there already"),
    "a file of others": ("--drop 1 --to asked/queries.jsonl", "is there already"),
    "a dead link": ("--drop 1 --to dead.jsonl", "is there already"),
    "a folder of others": ("--drop 1 --to asked", "is there already"),
    "beside the corpus, whose pattern takes it": (
        "--drop 1 --to data/b.jsonl --set train.path={0}/data/*.jsonl", "its files would be taken for rows: train.path"
    ),
    "in the corpus' folder": ("--drop 1 --to data/b.jsonl --set train.path={0}/data", "lies inside train.path"),
    "in the run": ("--drop 1 --to run/new.jsonl", "lies inside another run or gradient index"),
    "one place twice": ("--drop 1 --to new.jsonl --rejected new.jsonl", "in each other's way"),
    "another format": ("--drop 1 --to new.parquet", "is parquet, and the corpus is jsonl; end it in .jsonl"),
    "no such folder's parent": ("--drop 1 --to /proc/nowhere/new.jsonl", "--to: /proc/nowhere/new.jsonl: cannot be"),
    "too many": ("--drop 21 --to new.jsonl", "--drop: 21: only 20 rows have a score"),
    "no number": ("--drop many --to new.jsonl", "--drop: many: is no number of rows; write 100, or a share as in 1%"),
    "all": ("--drop 100% --to new.jsonl", "--drop: 100%: is no number of rows"),
    "half a row": ("--select 1.5 --to new.jsonl", "--select: 1.5: is no number of rows"),
    "no such side": ("--drop 1 --because harm --to new.jsonl", "no such side; did you mean 'harmful'?"),
    "no such way": ("--drop 1 --across sum --to new.jsonl", "--across: sum: no such way; known are mean, max, votes"),
    "votes of no number": ("--drop-above 1 --across votes --to new.jsonl", "needs a number of rows that each query"),
    "no band": ("--between q70 q30 --to new.jsonl", "--between: q70 q30: is no band"),
    "a column with --drop": ("--drop 1 --per topic --to new.jsonl", "--per: topic: does not go with --drop"),
    "no such column": ("--select 3 --per topics --to new.jsonl", "did you mean 'topic'?"),
    "no temperature": ("--sample 3 --temperature 0 --to new.jsonl", "--temperature: 0.0: want a number above 0"),
    "no such row": ("--ids 99 --to new.jsonl", "--ids: 99: no row has this id; or a number from 0 to 19"),
    "rejected of none": ("--annotate --to new.jsonl --rejected gone.jsonl", "--rejected: gone.jsonl: no row goes"),
    "scores for DATE-LM": ("--drop 1 --format date-lm --to new", "use it with --annotate"),
    "no run": ("--drop 1 --to new.jsonl", "is not a run directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_touched(
    case: str, run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = WRONG[case]
    (tmp_path / "dead.jsonl").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    before = state(tmp_path)
    given = arguments.replace("{0}", str(tmp_path)).split()
    side = [] if "--because" in given else ["--because", "helpful"]
    url = "data" if case == "no run" else run.url
    assert status_of(monkeypatch, "curate", url, *side, *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said.replace("{0}", str(tmp_path)) in line
    assert state(tmp_path) == before


@pytest.mark.parametrize("how", ["a row more", "a letter", "a row less"])
def test_a_corpus_that_has_changed_is_refused(
    how: str, run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data" / "a.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    changed = {
        "a row more": [*lines, lines[0]], "a letter": [lines[0].replace(b"question", b"quEstion"), *lines[1:]],
        "a row less": lines[1:],
    }  # fmt: skip
    file.write_bytes(b"".join(changed[how]))
    before = state(tmp_path)
    asked = ("curate", run.url, "--drop", 1, "--because", "helpful", "--to", tmp_path / "clean.jsonl")
    assert status_of(monkeypatch, *asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: train.path: {file}: ")
    assert ("has changed since" if how == "a letter" else "is not the corpus of") in line
    assert state(tmp_path) == before


def test_runs_of_other_rows_and_runs_without_scores(
    run: datainf_ray.Run,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "data" / "b.jsonl", rows_of(ROWS, first=5))
    other = make("data/b.jsonl", INFLUENCE, name="other")
    none = make("data/a.jsonl", INFLUENCE, name="none", results={"scores": False})
    going = make("data/a.jsonl", INFLUENCE, name="going", state="running")
    asked = ("--drop", 1, "--because", "helpful", "--to", tmp_path / "clean.jsonl")
    for runs, said in (
        ((run.url, other.url), "its training rows are not those of"),
        ((none.url,), "stored no scores (results.scores: false)"),
        ((going.url,), "is 'running'"),
    ):
        assert status_of(monkeypatch, "curate", *runs, *asked) == 2
        assert said in capsys.readouterr().err


def test_without_the_library_near_duplicates_are_one_line(
    run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    asked = ("--drop", 1, "--because", "helpful", "--near-duplicates", "--to", tmp_path / "clean.jsonl")
    assert status_of(monkeypatch, "curate", run.url, *asked) == 2
    said = "--near-duplicates: needs a package that is not installed; pip install 'datainf-ray[curate]'"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_hostile_names(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that would move a terminal's cursor, files and folders with brackets, spaces and hashes in their names."""
    data = tmp_path / "d [1]#" / "x?.jsonl"
    data.parent.mkdir()
    write(data, rows_of(ROWS))
    ids = [f"\x1b[2J{n}\n\u202e<script>" for n in range(ROWS)]
    run = make("d [1]#/x?.jsonl", INFLUENCE, name="run #[1]", ids=ids)
    folder = tmp_path / "new [2]# é"
    folder.mkdir()
    asked = ("--drop", 2, "--because", "helpful", "--to", folder / "clean %41.jsonl", "--rejected", folder / "-.jsonl")
    assert status_of(monkeypatch, "curate", run.url, *asked) == 0
    assert (folder / "clean %41.jsonl").read_bytes() == b"".join(lines_of(data, rows_of(ROWS))[2:])
    told = [json.loads(line) for line in (folder / "-.jsonl").read_text().split("\n")[:-1]]
    assert [row["id"] for row in told] == ids[:2]
    assert {p.name for p in folder.iterdir()} == {"clean %41.jsonl", "-.jsonl"}
    assert status_of(monkeypatch, "curate", run.url, "--drop", 2, "--because", "helpful", "--dry-run") == 0
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert "\u202e" not in page


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_cut_off_leaves_nothing_under_its_name(
    several: bool, how: signal.Signals, make: Make, tmp_path: Path
) -> None:
    """Ended while it writes; and the same command does it then."""
    (tmp_path / "data").mkdir()
    names = ["a.jsonl", "b.jsonl"] if several else ["a.jsonl"]
    for name in names:
        write(tmp_path / "data" / name, rows_of(ROWS // len(names)))
    run = make([f"data/{name}" for name in names], INFLUENCE)
    to, gone = tmp_path / "clean", tmp_path / "gone"
    places = [str(to), str(gone)] if several else [f"{to}.jsonl", f"{gone}.jsonl"]
    program = """
import sys, time
from datainf_ray.curate import act
copied = act.copy_text
def slowly(*arguments):
    copied(*arguments)
    arguments[2].flush()
    print("written", flush=True)
    time.sleep(60)
act.copy_text = slowly
from datainf_ray.cli import main
main()
"""
    asked = ["curate", run.url, "--drop", "2", "--because", "helpful", "--to", places[0], "--rejected", places[1]]
    with subprocess.Popen([sys.executable, "-c", program, *asked], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(how)
        assert process.wait(30) == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    left = {p.name for p in tmp_path.iterdir()} - {"data", "run", "asked"}
    assert left <= {".datainf"}
    began = time.monotonic()
    subprocess.run([*COMMAND, *asked], check=True, capture_output=True)
    assert time.monotonic() - began < 60
    assert all(os.path.exists(place) for place in places)


@pytest.mark.parametrize("taken", ["clean.jsonl", "gone.jsonl"])
def test_who_comes_first_is_not_written_over(
    taken: str, run: datainf_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gets the name while rows are written stays; where the rows that go are not, those that stay are not."""
    copied = act.copy_text
    to, gone = tmp_path / "clean.jsonl", tmp_path / "gone.jsonl"

    def meanwhile(*arguments: Any) -> None:
        copied(*arguments)
        (tmp_path / taken).write_text("another's")

    monkeypatch.setattr(act, "copy_text", meanwhile)
    with pytest.raises(datainf_ray.RequestError, match="is there by now"):
        run.curate(to=str(to), rejected=str(gone), drop=1, because="helpful")
    assert (tmp_path / taken).read_text() == "another's"
    assert to.exists() == (taken == "clean.jsonl")
    assert not (tmp_path / ".datainf").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_whole_run_is_curated(tmp_path: Path) -> None:
    """The run that `attribute` gives, and one that answers other queries from its index."""
    for name, count, seed in (("train", 24, 1), ("queries", 3, 2)):
        tiny.write_rows(tmp_path / f"{name}.jsonl", count, seed, labels=3)
    config: dict[str, Any] = tiny.configuration(tmp_path, tiny.save_model(tmp_path, "bert"), tmp_path / "run")
    run = attribute(config, index=True, **{"results.by": "label"})
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = datainf_ray.query(run.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines(keepends=True)
    for one in (run, answers):
        influence = scores(one).double().numpy()
        mean = (influence / np.sqrt((influence**2).mean(axis=0))).mean(axis=1)
        to = tmp_path / f"{Path(one.url).name}.jsonl"
        assert one.curate(to=str(to), drop=6, because="harmful").kept == 18
        want = np.sort(np.argsort(-mean, kind="stable")[6:])
        assert to.read_bytes() == b"".join(lines[n] for n in want)
        stored = stored_by(one)
        assert stored is not None
        assert stored.equals(one.by("label"))
        assert set(stored["value"].to_pylist()) == {"0", "1", "2"}
    (tmp_path / "run" / "by.parquet").unlink()
    stored = stored_by(attribute(config, index=True, **{"results.by": "label"}))  # it was cut off before that
    assert stored is not None
    assert stored.equals(run.by("label"))
    both = run.selected(answers, select=3, because="harmful")
    assert len(both) == 3
