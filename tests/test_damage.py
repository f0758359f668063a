"""Whatever has become of a run's directory, each command ends with its result, or with one line about what is wrong.

Kinds of damage × commands. A line names the file where a command needs it; and `run` does again what it can.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import tiny
from tests.runs_of import attribute, status_of, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

Damage = Callable[[Path], None]

PART = "examples/part-000000.parquet"
INDEX_PART = "index/part-000001"


def document(name: str, **changes: Any) -> Damage:
    """Fields of a JSON file set, by dotted names; one that is set to `...` is taken away."""

    def damage(run: Path) -> None:
        tree = json.loads((run / name).read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            inner = tree
            for step in path:
                inner = inner[step]
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
        (run / name).write_text(json.dumps(tree))

    return damage


def content(name: str, data: bytes) -> Damage:
    return lambda run: (run / name).parent.mkdir(exist_ok=True) or ((run / name).write_bytes(data) and None)


def cut(name: str, share: float) -> Damage:
    return lambda run: (run / name).write_bytes((data := (run / name).read_bytes())[: int(share * len(data))]) and None


def flipped(name: str, place: float) -> Damage:
    def damage(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[int(place * len(data))] ^= 4
        (run / name).write_bytes(data)

    return damage


def gone(name: str) -> Damage:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def folder(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def fifo(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return damage


def another(name: str, other: str) -> Damage:
    return lambda run: shutil.copy(run / other, run / name) and None


def table(name: str, made: Callable[[pa.Table], pa.Table]) -> Damage:
    return lambda run: pq.write_table(made(pq.read_table(run / name)), run / name)


#: By name, the damage.
RUN_JSON: dict[str, Damage] = {
    "run.json []": content("run.json", b"[]"),
    "run.json {}": content("run.json", b"{}"),
    "run.json empty": content("run.json", b""),
    "run.json half": cut("run.json", 0.5),
    "run.json not UTF-8": content("run.json", b'{"format": 1, "state": "\xff"}'),
    "run.json deep": content("run.json", b"[" * 100_000),
    "run.json a folder": folder("run.json"),
    "run.json a FIFO": fifo("run.json"),
    "run.json gone": gone("run.json"),
    "run.json format 2": document("run.json", format=2),
    "no state": document("run.json", state=...),
    "state unknown": document("run.json", state="well"),
    "no config": document("run.json", config=...),
    "config a list": document("run.json", config=[]),
    "config empty": document("run.json", config={}),
    "no results": document("run.json", config__results=...),
    "top_k text": document("run.json", config__results__top_k="all"),
    "path a number": document("run.json", config__train__path=3),
    "no counts": document("run.json", counts=...),
    "counts null": document("run.json", counts=None),
    "rows text": document("run.json", counts__rows="many"),
    "rows negative": document("run.json", counts__rows=-1),
    "rows 10**30": document("run.json", counts__rows=10**30),
    "queries 10**12": document("run.json", counts__queries=10**12),
    "queries none": document("run.json", counts__queries=0),
    "sweeps text": document("run.json", sweeps="three"),
    "files text": document("run.json", files__x={"bytes": "x"}),
    "sizes text": document("run.json", sizes__chunk_rows="x"),
    "seconds text": document("run.json", seconds="long"),
}
#: By name: the damage, the file that is named, and the commands that need it.
TABLES: dict[str, tuple[Damage, str, str]] = {
    **{
        f"{name} {how}": (damage(name), name, needs)
        for name, needs in (("top.parquet", "top report"), ("queries.parquet", "top report"),
                            ("blocks.parquet", "report query"))
        for how, damage in {
            "half": lambda n: cut(n, 0.5),
            "less its end": lambda n: cut(n, 0.98),
            "empty": lambda n: content(n, b""),
            "text": lambda n: content(n, b"PAR1 and so on PAR1"),
            "flipped": lambda n: flipped(n, 0.2),
            "flipped in its footer": lambda n: flipped(n, 0.9),
            "a folder": folder,
            "a FIFO": fifo,
            "gone": gone,
            "examples": lambda n: another(n, PART),
            "of no rows": lambda n: table(n, lambda t: t.slice(0, 0)),
            "of other columns": lambda n: table(n, lambda t: t.select(t.column_names[1:])),
        }.items()
    },
    **{
        f"examples {how}": (damage, "part-000000.parquet" if "folder" not in how else "examples", "top-all report")
        for how, damage in {
            "half": cut(PART, 0.5),
            "empty": content(PART, b""),
            "flipped": flipped(PART, 0.7),
            "flipped in the footer": flipped(PART, 0.85),
            "gone": gone(PART),
            "folder gone": gone("examples"),
            "another": another(PART, "top.parquet"),
            "of the same columns": table(PART, lambda t: t.take(list(range(len(t) - 1, -1, -1)))),
        }.items()
    },
    **{
        f"index {how}": (damage, named, "query")
        for how, damage, named in (
            ("[]", content("index/index.json", b"[]"), "index.json"),
            ("half", cut("index/index.json", 0.5), "index.json"),
            ("gone", gone("index"), "index"),
            ("without blocks", document("index/index.json", blocks=...), "index.json: blocks"),
            ("without complete", document("index/index.json", complete=...), "index.json: complete"),
            ("without damping", document("index/index.json", damping=...), "index.json: damping"),
            ("of many rows", document("index/index.json", rows=10**12), "rows"),
            ("of many parts", document("index/index.json", chunks=10**9), "parts"),
            ("of text", document("index/index.json", rows="x"), "index.json: rows"),
            ("part half", cut(f"{INDEX_PART}.safetensors", 0.5), "part-000001.safetensors"),
            ("part empty", content(f"{INDEX_PART}.safetensors", b""), "part-000001.safetensors"),
            ("part flipped", flipped(f"{INDEX_PART}.safetensors", 0.9), "part-000001.safetensors"),
            ("part flipped in its header", flipped(f"{INDEX_PART}.safetensors", 0.01), "part-000001.safetensors"),
            ("part exchanged", another(f"{INDEX_PART}.safetensors", "index/part-000000.safetensors"), "part-000001"),
            ("part gone", gone(f"{INDEX_PART}.safetensors"), "parts"),
            ("facts flipped", flipped(f"{INDEX_PART}.parquet", 0.3), "part-000001.parquet"),
            ("facts exchanged", another(f"{INDEX_PART}.parquet", "index/part-000000.parquet"), "part-000001.parquet"),
            ("facts gone", gone(f"{INDEX_PART}.parquet"), "part-000001.parquet"),
        )
    },
}  # fmt: skip
#: What costs only itself.
DECORATIONS: dict[str, Damage] = {
    "an event {}": content("events/20260101T000000Z-aaaa-00000.jsonl", b"{}\n"),
    "events not UTF-8": content("events/20260101T000000Z-aaaa-00000.jsonl", b'\xff\xfe\n{"event": "\xff"}\n'),
    "events of nonsense": content(
        "events/x.jsonl",
        b'[]\nnull\n{"time": "x", "event": 3}\n{"time": 1e400, "event": "worker_up"}\n'
        b'{"time": 1, "event": "worker_up"}\n'
        b'{"time": 1, "event": "chunk_done", "worker": "x"}\n{"time": 1, "event": "worker_up", "worker": "-1"}\n',
    ),
    "report gone": gone("report.html"),
    "driver {}": content(".driver.json", b"{}"),
    "driver []": content(".driver.json", b"[]"),
    "driver of nonsense": content(".driver.json", b'{"owner": 3, "progress": {"rows": "x"}, "ended": true}'),
    "driver not UTF-8": content(".driver.json", b"\xff"),
}

CONFIG: dict[str, Any] = {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an index of several parts."""
    place = tmp_path_factory.mktemp("whole")
    tiny.write_rows(place / "train.jsonl", 40, seed=1)
    tiny.write_rows(place / "queries.jsonl", 4, seed=2)
    model = tiny.save_model(place, "llama")
    CONFIG.update(tiny.configuration(place, model, place / "run", index=True, results={"top_k": 3}))
    attribute(CONFIG)
    return place / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def command(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """A command's status, and the last line that it writes to standard error."""
    config = run.parent / "config.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "output": str(run)}))
    queries = run.parent / "asked.jsonl"
    tiny.write_rows(queries, 2, seed=5)
    arguments = {
        "run": ["run", str(config), "--progress", "lines"],
        "top": ["top", str(run), "-k", "3"],
        "top-all": ["top", str(run), "-k", "30"],
        "report": ["report", str(run)],
        "query": ["query", str(run), "--queries", str(queries), "--output", str(run.parent / "answer")],
    }[name]
    capsys.readouterr()
    status = status_of(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = err.splitlines()
    if status == 2:
        assert len(lines) == 1, err
    return status, lines[-1] if lines else ""


Asked = tuple[pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Asked:
    return monkeypatch, capsys


@pytest.mark.parametrize("kind", RUN_JSON)
def test_a_damaged_record_is_one_line_for_every_command(kind: str, run: Path, asked: Asked) -> None:
    RUN_JSON[kind](run)
    for name in ("run", "top", "report", "query"):
        status, line = command(name, run, *asked)
        assert status == 2, line
        assert line.startswith("error: ")
        assert str(run) in line
        assert len(line) < 400


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
def test_a_damaged_table_is_named_by_who_needs_it(kind: str, run: Path, asked: Asked) -> None:
    damage, named, needs = TABLES[kind]
    damage(run)
    for name in ("top", "top-all", "report", *(["query"] if "query" in needs else [])):
        status, line = command(name, run, *asked)
        if name in needs.split() or (name == "top-all" and "top" in needs.split()):
            assert status in (1, 2)
            assert line.startswith(("error: ", "failed: "))
            assert named in line
        else:
            assert status == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    "top.parquet half", "queries.parquet flipped", "blocks.parquet gone", "queries.parquet of no rows",
    "top.parquet of other columns", "examples half", "examples flipped", "examples gone", "examples folder gone",
    "examples of the same columns", "index []", "index gone", "index part gone", "index of many rows",
])  # fmt: skip
def test_run_does_a_damaged_run_again(kind: str, run: Path, whole: Path, asked: Asked) -> None:
    damage, named, _ = TABLES[kind]
    damage(run)
    if kind == "index []":  # it says no more whose it is
        assert command("run", run, *asked)[0] == 2
        return
    assert command("run", run, *asked)[0] == 0
    assert tables(run) == tables(whole), named
    assert command("query", run, *asked)[0] == 0


@pytest.mark.parametrize("kind", ["index part flipped", "index facts exchanged"])
def test_a_part_of_an_index_that_is_removed_is_made_again(kind: str, run: Path, whole: Path, asked: Asked) -> None:
    """As the line about it says."""
    TABLES[kind][0](run)
    status, line = command("query", run, *asked)
    assert (status, line.rpartition("; ")[2]) == (1, "remove it, and run the same configuration again")
    for ending in ("safetensors", "parquet"):
        (run / f"{INDEX_PART}.{ending}").unlink(missing_ok=True)
    assert command("run", run, *asked)[0] == 0
    assert command("query", run, *asked)[0] == 0
    assert {p.name: p.read_bytes() for p in (run / "index").glob("part-*")} == {
        p.name: p.read_bytes() for p in (whole / "index").glob("part-*")
    }


@pytest.mark.parametrize("kind", DECORATIONS)
def test_a_damaged_decoration_costs_only_itself(kind: str, run: Path, asked: Asked) -> None:
    DECORATIONS[kind](run)
    for name in ("top", "report", "run"):
        assert command(name, run, *asked)[0] == 0
    page = (run / "report.html").read_text()
    assert "<svg" in page


def test_a_folder_in_place_of_the_drivers_file_is_named(run: Path, asked: Asked) -> None:
    (run / ".driver.json").mkdir()
    assert command("top", run, *asked)[0] == 0
    status, line = command("run", run, *asked)
    assert status == 2
    assert line.endswith(".driver.json: is no file of a run's driver; remove it")
