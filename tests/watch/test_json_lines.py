"""Progress for programs: every line of standard output is a JSON object."""

from __future__ import annotations

import io
import json
import subprocess
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml

import datainf_ray
from datainf_ray import cli
from datainf_ray.common.errors import RequestError
from datainf_ray.common.redaction import keep_secret
from datainf_ray.watch import json_lines
from datainf_ray.watch.json_lines import JsonLines
from datainf_ray.watch.lines import Lines
from datainf_ray.watch.progress import Progress, Silent
from datainf_ray.watch.shown import Shown
from datainf_ray.watch.watching import WATCHERS, known, watching
from tests import tiny
from tests.runs_of import COMMAND, tables

FIGURES = {"sweep", "rows", "done", "tokens", "seconds", "workers", "tokens_per_second", "seconds_left"}


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_sweep_is_lines_of_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_EVERY", 0.0)
    written = io.StringIO()
    watcher = JsonLines(written)
    watcher.say("two words …")
    watcher.begin("scores", 10)
    watcher.advance(0, 0, 1)
    watcher.advance(4, 40, 2)
    watcher.advance(-1, 0, 2)  # lost with a machine
    watcher.advance(7, 70, 2)
    watcher.end()
    watcher.close()
    found = events(written.getvalue())
    assert found[0] == {"event": "said", "text": "two words …"}
    assert written.getvalue().isascii()  # whatever the reader's encoding is
    assert [event["event"] for event in found[1:]] == ["sweep_begun", *["progress"] * 4, "sweep_done"]
    assert all(event.keys() == {"event", *FIGURES} for event in found[1:])
    assert [event["done"] for event in found[1:]] == [0, 0, 4, 3, 10, 10]
    assert {(event["sweep"], event["rows"]) for event in found[1:]} == {("scores", 10)}
    assert (found[-1]["tokens"], found[-1]["workers"]) == (110, 2)
    assert found[1]["tokens_per_second"] is found[1]["seconds_left"] is None


def test_lines_of_a_sweep_are_a_second_apart() -> None:
    written = io.StringIO()
    watcher = JsonLines(written)
    watcher.begin("scores", 10**6)
    began = events(written.getvalue())[0]
    for _ in range(1000):
        watcher.advance(1, 10, 1)
    watcher.end()
    last = events(written.getvalue())[-1]
    assert len(events(written.getvalue())) <= 3 + last["seconds"] - began["seconds"]
    assert last["done"] == 1000
    assert last["event"] == "sweep_unfinished"


def test_nothing_secret_is_written() -> None:
    keep_secret({"secret": "hush-hush-hush"})
    written = io.StringIO()
    watcher = JsonLines(written)
    watcher.say("hush-hush-hush could not sign s3://user:pass@host/x?X-Amz-Signature=abcdef")
    watcher.begin("hush-hush-hush", 1)
    assert "hush-hush" not in written.getvalue()
    assert "abcdef" not in written.getvalue()
    assert ":pass@" not in written.getvalue()
    assert [event["event"] for event in events(written.getvalue())] == ["said", "sweep_begun"]


def test_a_run_that_goes_on_elsewhere() -> None:
    """What is heard now and then of another process's sweeps becomes the same lines."""
    written = io.StringIO()
    took = {"curvature": Progress("running", "curvature", 98, 98, 10_000, 40.0, 2)}  # of 100 rows 98 could be used
    shown = Shown(JsonLines(written), took.get)
    shown.show(Progress("running"))
    shown.show(Progress("running", "curvature", 100, 50, 5000, 10.0, 2))  # first heard of when half is done
    shown.show(Progress("running", "curvature", 100, 50, 5000, 10.0, 2))
    shown.show(Progress("running", "scores", 100, 90, 9000, 18.0, 3))
    shown.end()  # and then it is not heard of any more
    found = [(e["event"], e["sweep"], e["done"], e["tokens"], e["workers"]) for e in events(written.getvalue())]
    assert found == [
        ("sweep_begun", "curvature", 0, 0, 0),
        ("progress", "curvature", 50, 5000, 2),
        ("progress", "curvature", 100, 10_000, 2),
        ("sweep_done", "curvature", 100, 10_000, 2),
        ("sweep_begun", "scores", 0, 0, 0),
        ("progress", "scores", 90, 9000, 3),
        ("sweep_unfinished", "scores", 90, 9000, 3),
    ]
    heard = events(written.getvalue())[1]
    assert heard["tokens_per_second"] == pytest.approx(500, rel=0.2)
    assert heard["seconds_left"] == pytest.approx(10, rel=0.2)


def test_watchers_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (known(True), known(False), known("json")) == ("auto", "none", "json")
    assert set(WATCHERS) == {"auto", "bars", "lines", "json", "none"}
    with watching("json") as watcher:
        assert isinstance(watcher, JsonLines)
    with watching() as watcher:
        assert isinstance(watcher, Lines)  # no terminal here
    with watching(False) as watcher:
        assert isinstance(watcher, Silent)
    closed = []
    monkeypatch.setattr(JsonLines, "close", lambda self: closed.append(self))
    with pytest.raises(KeyError), watching("json"):
        raise KeyError
    assert len(closed) == 1


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> Path:
    path = tmp_path / "attribute.yaml"
    path.write_text(yaml.safe_dump(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    return path


@pytest.mark.parametrize("command", ["run", "query"])
def test_an_unknown_name_is_one_line_before_anything_starts(
    command: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datainf_ray.cluster.ahead.Ahead.begin", lambda *a: pytest.fail("a Ray was started"))
    more = ["--queries", "more.jsonl", "--output", "run2"] if command == "query" else []
    monkeypatch.setattr("sys.argv", ["datainf", command, str(config), *more, "--progress", "xml"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "error: progress: xml: there is no such watcher; use one of auto, bars, lines, json, none"
    ]
    assert said.out == ""
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("block", [True, False])
def test_so_it_is_from_python(config: Path, block: bool) -> None:
    with pytest.raises(RequestError, match="progress: xml: "):
        datainf_ray.attribute(config, progress="xml", block=block)
    with pytest.raises(RequestError, match="progress: xml: "):
        datainf_ray.query(str(config), queries="more.jsonl", output="run2", progress="xml")


def whole(*arguments: str) -> list[dict[str, Any]]:
    """The lines of a command's standard output."""
    done = subprocess.run([*COMMAND, *arguments, "--progress", "json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return events(done.stdout)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_whole_run_and_a_query(config: Path) -> None:
    folder = config.parent
    found = whole("run", str(config), "--set", "index=true")
    finished = datainf_ray.open_run(str(folder / "run")).record
    sweeps = [list(lines) for _, lines in groupby((e for e in found if e["event"] != "said"), lambda e: e["sweep"])]
    assert [lines[0]["sweep"] for lines in sweeps] == ["queries", "pilot", "curvature", "scores"]
    for lines, record in zip(sweeps, finished.sweeps, strict=True):
        assert [lines[0]["event"], lines[-1]["event"]] == ["sweep_begun", "sweep_done"]
        assert {line["event"] for line in lines[1:-1]} <= {"progress"}
        done = [line["done"] for line in lines]
        assert done == sorted(done)
        assert (done[0], done[-1], lines[-1]["rows"]) == (0, record.examples, record.examples)
        assert lines[-1]["tokens"] == record.tokens
    said = [event["text"] for event in found if event["event"] == "said"]
    assert any("40 rows scored" in text for text in said)
    before = tables(folder / "run")

    again = whole("run", str(config), "--set", "index=true")
    assert [event["event"] for event in again] == ["said", *["said"] * (len(again) - 1)]
    assert "already done" in again[0]["text"]
    assert tables(folder / "run") == before

    answers = whole("query", str(folder / "run"), "--queries", str(folder / "queries.jsonl"), "--output", f"{folder}/2")
    assert [e["sweep"] for e in answers if e["event"] == "sweep_done"] == ["queries", "curvature", "scores"]
