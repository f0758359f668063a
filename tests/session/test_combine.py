"""Several runs' influences, weighted and added: against plain numpy, cut off and taken up, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import datainf_ray
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.corpus.passages import pair
from datainf_ray.request.combination import prepare_combination
from datainf_ray.runs import combine as module
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import matrix
from datainf_ray.runs.texts import QUERY, ROW, said_by
from datainf_ray.session.combine import SWEEP, assemble
from tests.interrupting import Interrupter
from tests.runs.conftest import Made, make_run
from tests.runs_of import COMMAND, status_of, tables

ROWS, QUERIES = 200, 3
IDS = [f"row-{number}" for number in range(ROWS)]


def made(folder: Path, name: str, seed: int, chunk: int, **more: Any) -> Made:
    draw = np.random.default_rng(seed)
    given = {
        "influence": draw.standard_t(3, size=(ROWS, QUERIES)).astype(np.float32) * 1e-4,
        "missing": np.isin(np.arange(ROWS), draw.integers(0, ROWS, 9)),
        "selves": draw.normal(-1, 1, ROWS).astype(np.float32),
        "ids": IDS,
        "predicted": [f"{name} of {number}" for number in range(ROWS)],
    }
    document = {"fingerprint": f"{seed:064d}", "identity": {"train": "t", "queries": "q"}}
    return make_run(str(folder / name), ROWS, QUERIES, chunk=chunk, **{**given, **document, **more})


@pytest.fixture
def runs(tmp_path: Path) -> list[Made]:
    """Three, whose parts are cut at other rows."""
    return [made(tmp_path, f"checkpoint-{seed}", seed, chunk) for seed, chunk in ((1, 64), (2, 30), (3, 200))]


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and row groups of a few rows."""
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    monkeypatch.setattr(module, "group_rows", lambda schema: 7)


def combined(runs: list[Made], output: Path, **more: Any) -> Run:
    return datainf_ray.combine([one.run for one in runs], output, progress=False, **more)


@pytest.mark.parametrize("cut", ["one part", "many parts"])
def test_a_sum_is_numpys(tmp_path: Path, runs: list[Made], cut: str, request: pytest.FixtureRequest) -> None:
    if cut == "many parts":
        request.getfixturevalue("many_parts")
    weights = [2e-4, 1.5e-4, 0.5e-4]
    run = combined(runs, tmp_path / "sum", weights=weights)
    parts = [name for name in run.record.files if name.startswith("examples/")]
    assert (len(parts) == 1) == (cut == "one part"), parts
    want = sum(w * one.influence.astype(np.float64) for w, one in zip(weights, runs, strict=True))
    there = run.examples()
    assert there["row"].to_pylist() == list(range(ROWS))
    assert there["id"].to_pylist() == IDS
    np.testing.assert_array_equal(matrix(there["influence"]), want.astype(np.float32))
    fine = ~np.isnan(want).any(axis=1)
    assert (there["status"].to_numpy() == "ok").tolist() == fine.tolist()
    assert 0 < fine.sum() < ROWS - 20
    assert run.summary()["status"] == {"ok": fine.sum(), "no_target_tokens": ROWS - fine.sum()}
    examples = [one.run.examples() for one in runs]

    def column(table: pa.Table, name: str) -> np.ndarray:
        return table[name].cast(pa.float64()).to_numpy()

    def added(name: str, factors: Any) -> np.ndarray:
        return sum(w * column(table, name) for w, table in zip(factors, examples, strict=True))

    for name, values in {
        "loss": added("loss", np.array(weights) / sum(weights)),
        "sqnorm": added("sqnorm", weights),
        "self_influence": added("self_influence", weights),
        "self_influence_error": np.sqrt(
            sum((w * column(table, "self_influence_error")) ** 2 for w, table in zip(weights, examples, strict=True))
        ),
    }.items():
        np.testing.assert_allclose(column(there, name), np.where(fine, values, np.nan), rtol=1e-6, atol=0)
    stored = matrix(there["influence"]).astype(np.float64)
    for name, of in (("influence_mean", np.mean), ("influence_min", np.min), ("influence_max", np.max)):
        np.testing.assert_array_equal(column(there, name), of(stored, axis=1).astype(np.float32))
    assert there["detail"].to_pylist() == [None if ok else "nothing to predict" for ok in fine]
    assert there["tokens"].equals(examples[-1]["tokens"])
    assert there["predicted"].to_pylist() == [f"checkpoint-3 of {k}" if ok else None for k, ok in enumerate(fine)]
    assert run.record.counts.tokens == pc.sum(there["tokens"].filter(pa.array(fine))).as_py()
    assert run.record.counts.rows_cut is None  # the runs' run.json did not say
    for query in range(QUERIES):
        order = np.argsort(np.where(fine, want[:, query], np.inf), kind="stable")
        assert run.top(query, k=30)["row"].to_pylist() == order[:30].tolist()  # beyond those that are listed, too
    listed = run.tops()
    previews = dict(zip(listed["row"].to_pylist(), listed["preview"].to_pylist(), strict=True))
    known = set().union(*(set(one.run.tops()["row"].to_pylist()) for one in runs))
    assert {row: text for row, text in previews.items() if text} == {
        row: f"question {row} ⟶ answer {row}" for row in previews if row in known
    }
    texts = run.texts()
    assert said_by(texts, ROW) == {row: pair(f"question {row}", f"answer {row}") for row in previews if row in known}
    assert said_by(texts, QUERY) == {query: pair(f"asked {query}", f"said {query}") for query in range(QUERIES)}
    assert [one.weight for one in run.record.combined] == weights
    assert [one.run for one in run.record.combined] == [one.run.url for one in runs]
    assert [one.fingerprint for one in run.record.combined] == [f"{seed:064d}" for seed in (1, 2, 3)]


def test_readers_take_it_for_a_run(tmp_path: Path, runs: list[Made], monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "sum"
    assert status_of(monkeypatch, "combine", *(one.run.url for one in runs), "--output", output) == 0
    run = datainf_ray.open_run(str(output))
    assert repr(run) == f"<Run {output}: done, datainf, 200 rows, 3 queries>"
    want = sum(one.influence.astype(np.float64) for one in runs)
    np.testing.assert_array_equal(matrix(run.scores()["influence"]), want.astype(np.float32))
    page = (output / "report.html").read_text()
    assert "weighted sum of those in 3 runs: 1 × " in page
    assert status_of(monkeypatch, "top", output, "--format", "json") == 0
    assert status_of(monkeypatch, "report", output) == 0
    assert "200 rows" in run._repr_html_() or "200" in run._repr_html_()
    blocks = run.blocks()
    assert blocks["block"].to_pylist() == [
        f"{n}/{name}" for n, one in enumerate(runs) for name in one.run.blocks()["block"].to_pylist()
    ]
    assert run.record.counts.blocks == len(blocks) == 3 * 24
    queries = run.queries()
    assert queries["id"].to_pylist() == runs[0].run.queries()["id"].to_pylist()
    np.testing.assert_allclose(queries["loss"].to_numpy(), [1.5, 2.5, 3.5], rtol=1e-6)
    assert not (output / "checkpoints").exists()
    assert [s.name for s in run.record.sweeps] == ["combine"]
    assert run.config["model"]["adapter"] == "s3://b/adapter"  # of all runs
    assert run.events()["event"].to_pylist() == ["run_begun", "run_done"]
    # a combination can be combined
    more = made(tmp_path, "checkpoint-4", 4, 50)
    both = datainf_ray.combine([run, more.run], tmp_path / "both", weights=[1, 3], progress=False)
    whole = want.astype(np.float32).astype(np.float64) + 3 * more.influence.astype(np.float64)
    np.testing.assert_array_equal(matrix(both.scores()["influence"]), whole.astype(np.float32))


def test_one_that_is_killed_goes_on_with_the_same_bytes(
    tmp_path: Path, runs: list[Made], many_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = combined(runs, tmp_path / "quiet")

    def prepared(name: str) -> Any:
        return prepare_combination(
            [one.run for one in runs], str(tmp_path / name), None, mixed=False, by_id=False, options={}
        )

    calls: list[int] = []
    write = module._write

    def counting(directory: Any, number: int, *rest: Any) -> Any:
        calls.append(number)
        return write(directory, number, *rest)

    monkeypatch.setattr(module, "_write", counting)
    for steps in (1, 4, 23):
        what, sources = prepared(f"cut-{steps}")
        with pytest.raises(KeyboardInterrupt):
            assemble(what, Interrupter(SWEEP, steps), lambda watcher, sources=sources: (sources, []))
        cut = datainf_ray.open_run(what.directory.url)
        assert cut.state == "interrupted"
        whole = len(cut.part_names())
        assert len(cut.examples()) < ROWS
        if steps == 23:  # what was damaged meanwhile is written again
            first = sorted((tmp_path / "cut-23" / "examples").iterdir())[0]
            first.write_bytes(first.read_bytes()[:-1])
            (tmp_path / "cut-23" / "checkpoints" / "combined" / "part-000001.top").unlink()
            whole -= 2
        calls.clear()
        assert tables(combined(runs, tmp_path / f"cut-{steps}")) == tables(quiet)
        assert len(calls) == len(quiet.part_names()) - whole
    assert whole > 0
    calls.clear()
    combined(runs, tmp_path / "cut-23")  # is done
    assert not calls
    (tmp_path / "quiet" / "examples" / "part-000003.parquet").unlink()
    assert tables(combined(runs, tmp_path / "quiet")) == tables(datainf_ray.open_run(str(tmp_path / "cut-23")))


def test_parts_of_other_numbers_are_not_taken(tmp_path: Path, runs: list[Made], many_parts: None) -> None:
    """Where a run was made again between two attempts, with other bits, as on another device."""
    what, sources = prepare_combination(
        [one.run for one in runs], str(tmp_path / "cut"), None, mixed=False, by_id=False, options={}
    )
    with pytest.raises(KeyboardInterrupt):
        assemble(what, Interrupter(SWEEP, 9), lambda watcher: (sources, []))
    shutil.rmtree(runs[1].run.url)
    runs[1] = made(tmp_path, "checkpoint-2", 2, 30, influence=np.ones((ROWS, QUERIES), np.float32))
    again = combined(runs, tmp_path / "cut")
    want = sum(one.influence.astype(np.float64) for one in runs)
    np.testing.assert_array_equal(matrix(again.scores()["influence"]), want.astype(np.float32))
    shutil.rmtree(runs[0].run.url)
    runs[0] = made(tmp_path, "checkpoint-1", 1, 30, influence=np.ones((ROWS, QUERIES), np.float32))
    want = sum(one.influence.astype(np.float64) for one in runs)
    np.testing.assert_array_equal(  # that it was done does not matter
        matrix(combined(runs, tmp_path / "cut").scores()["influence"]), want.astype(np.float32)
    )


def test_rows_and_queries_have_scores_where_all_runs_have(tmp_path: Path) -> None:
    none = np.zeros(ROWS, bool)
    first = made(
        tmp_path,
        "a",
        1,
        64,
        missing=np.arange(ROWS) == 5,
        problems=[{"id": "row-5", "status": "no_target_tokens", "detail": "why"}],
    )
    influence = second_influence = np.ones((ROWS, QUERIES), np.float32)
    influence[:, 1] = np.nan
    influence[7, 0] = 3e38
    second = made(
        tmp_path, "b", 2, 64, missing=none, influence=second_influence, query_status=["ok", "nonfinite", "ok"]
    )
    run = datainf_ray.combine([first.run, second.run], tmp_path / "sum", weights=[1, 2], progress=False)
    there = run.examples()
    assert {row: s for row, s in enumerate(there["status"].to_pylist()) if s != "ok"} == {
        5: "no_target_tokens",
        7: "nonfinite",
    }
    for name in ("influence", "loss", "sqnorm", "self_influence"):
        assert [row for row, value in enumerate(there[name].to_pylist()) if value is None] == [5, 7]
    assert run.record.counts.status == {"ok": ROWS - 2, "no_target_tokens": 1, "nonfinite": 1}
    assert [p.detail for p in run.record.problems] == [
        f"in {first.run.url}: why",
        "the weighted sum of its influences is no number",
    ]
    values = matrix(there["influence"])
    assert np.isnan(values[:, 1]).all()
    np.testing.assert_array_equal(values[0, [0, 2]], (first.influence[0, [0, 2]].astype(float) + 2).astype(np.float32))
    assert run.queries()["status"].to_pylist() == ["ok", "nonfinite", "ok"]
    assert run.queries()["loss"].to_pylist()[1] is None
    with pytest.raises(RequestError, match="has no scores: nonfinite"):
        run.top(1)


def test_queries_are_found_by_their_ids(tmp_path: Path) -> None:
    names = {"a": ["x", "y", "z"], "b": ["z", "new", "x"]}
    both = [made(tmp_path, name, seed, 64) for seed, name in enumerate(names, 1)]
    for one in both:
        file = Path(one.run.url) / "queries.parquet"
        table = one.run.queries()
        ids = pa.array(names[file.parent.name])
        from datainf_ray.runs.checksums import stored
        from datainf_ray.runs.schemas import table_bytes

        data = table_bytes(table.set_column(1, table.schema.field("id"), ids))
        file.write_bytes(data)
        record = json.loads((file.parent / "run.json").read_text())
        record["files"]["queries.parquet"] = stored(data).model_dump()
        record["identity"]["queries"] = file.parent.name
        (file.parent / "run.json").write_text(json.dumps(record))
    urls = [one.run.url for one in both]
    with pytest.raises(RequestError, match=r"was made with other queries than .*--by-id"):
        datainf_ray.combine(urls, tmp_path / "sum", progress=False)
    run = datainf_ray.combine(urls, tmp_path / "sum", by_id=True, progress=False)
    want = both[0].influence[:, [0, 2]].astype(np.float64) + both[1].influence[:, [2, 0]]
    np.testing.assert_array_equal(matrix(run.scores()["influence"]), want.astype(np.float32))
    assert run.queries()["id"].to_pylist() == ["x", "z"]
    assert run.queries()["query"].to_pylist() == [0, 1]
    assert said_by(run.texts(), QUERY) == {0: pair("asked 2", "said 2"), 1: pair("asked 0", "said 0")}  # the last run's


Change = Callable[[Path], Any]


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


#: What is done to the folder of the runs a and b, the arguments, and what is said.
WRONG: dict[str, tuple[Change, list[str], str]] = {
    "one run": (lambda f: None, ["a", "--output", "out"], "run: 1 run cannot be combined; name two or more"),
    "twice": (lambda f: None, ["a", "b", "a", "--output", "out"], "a: is named twice"),
    "no run": (lambda f: None, ["a", "c", "--output", "out"], "c: is not a run directory"),
    "weights": (lambda f: None, ["a", "b", "--output", "out", "--weights", "1"], "--weights: 1: 1 weight for 2 runs"),
    "no number": (lambda f: None, ["a", "b", "--output", "out", "--weights", "1,x"], "--weights: x: is no number"),
    "zero": (lambda f: None, ["a", "b", "--output", "out", "--weights", "1,0"], "--weights: 0.0: is no weight"),
    "nan": (lambda f: None, ["a", "b", "--output", "out", "--weights", "nan,1"], "--weights: nan: is no weight"),
    "taken": (lambda f: None, ["a", "b", "--output", "taken"], "taken: is not empty and holds no run"),
    "a file": (lambda f: (f / "file").write_text("x"), ["a", "b", "--output", "file"], "output: "),
    "a link": (
        lambda f: (f / "latest").symlink_to(f / "a"), ["a", "b", "latest", "--output", "out"],
        "latest: is the same run as ",
    ),
    "another run": (lambda f: None, ["a", "b", "--output", "other"], "other: holds another run"),
    "itself": (lambda f: None, ["a", "b", "--output", "a"], "a: is what the request reads as run"),
    "inside": (lambda f: None, ["a", "b", "--output", "a/sum"], "a/sum: lies inside run"),
    "around": (lambda f: None, ["a", "b", "--output", "."], ": holds what the request reads as run"),
    "not done": (
        lambda f: edit(f / "b", lambda r: r.update(state="interrupted")), ["a", "b", "--output", "out"],
        "b: is 'interrupted'",
    ),
    "no scores": (
        lambda f: edit(f / "b", lambda r: r["config"]["results"].update(scores=False)), ["a", "b", "--output", "out"],
        "b: stored no scores",
    ),
    "other rows": (
        lambda f: edit(f / "b", lambda r: r["identity"].update(train="u")), ["a", "b", "--output", "out"],
        "b: was made with other training rows than ",
    ),
    "other method": (
        lambda f: edit(f / "b", lambda r: r["identity"].update(settings={"method.name": "cosine"})),
        ["a", "b", "--output", "out"], 'b: method.name is "cosine" there and "datainf" in ',
    ),
    "other columns": (
        lambda f: edit(f / "b", lambda r: r["identity"].update(settings={"train.max_length": 9})),
        ["a", "b", "--output", "out", "--mixed"], "b: train.max_length is 9 there and null in ",
    ),
    "damaged": (
        lambda f: (f / "b" / "examples" / "part-000001.parquet").unlink(), ["a", "b", "--output", "out"],
        "part-000001.parquet: is gone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_combined_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a", "b", "other"), 1):
        made(tmp_path, name, seed, 64)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    change, arguments, said = WRONG[case]
    change(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert status_of(monkeypatch, "combine", *arguments, "--progress", "none") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error, error
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"
    assert case == "damaged" or not (tmp_path / "out").exists()


def test_other_rows_of_the_same_number_are_noticed(tmp_path: Path) -> None:
    both = [made(tmp_path, "a", 1, 64), made(tmp_path, "b", 2, 64, ids=[*IDS[:-1], "another"])]
    with pytest.raises(RequestError, match=r"a: does not have the rows of .*b; combine runs of the same rows"):
        combined(both, tmp_path / "sum")
    assert datainf_ray.open_run(str(tmp_path / "sum")).state == "failed"


def test_mixed_methods_and_failures(tmp_path: Path) -> None:
    settings = {"train": "t", "queries": "q", "settings": {"method.name": "cosine", "results.top_k": 7, "seed": 3}}
    both = [made(tmp_path, "a", 1, 64), made(tmp_path, "b", 2, 64, identity=settings)]
    combined(both, tmp_path / "sum", mixed=True)
    nothing = made(tmp_path, "c", 3, 64, missing=np.ones(ROWS, bool))
    with pytest.raises(RunFailedError, match="none of the 200 rows has a score in all of the runs: row-0: no_target"):
        combined([both[0], nothing], tmp_path / "none")
    with pytest.raises(RequestError, match="combines several runs and has no gradient index; query its runs"):
        datainf_ray.query(str(tmp_path / "sum"), queries="x.jsonl", output=str(tmp_path / "q"))


def test_it_loads_neither_ray_nor_torch_for_a_wrong_request(tmp_path: Path) -> None:
    script = (
        "import sys; from datainf_ray.session.combine import combine; assert not {'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([COMMAND[0], "-c", script], check=True, timeout=60)
