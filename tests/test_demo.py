"""The demo: its rows, its figures, and once (`slow`) the whole of it on the real model."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from datainf_ray.common.errors import RequestError
from datainf_ray.demo import run_demo, train
from datainf_ray.demo.figures import TOP, judge
from datainf_ray.demo.text import (
    CLASSES,
    CUE,
    PLANTED_LABEL,
    DocRow,
    plant,
    read_docstrings,
    read_rows,
    split,
    write_rows,
)


@pytest.fixture(scope="module")
def library() -> list[DocRow]:
    return read_docstrings()


def _write_library(root: Path, each: int = 60) -> None:
    """A standard library whose import would end the program, with `each` docstrings of every class."""
    for package in CLASSES:
        docstring = f"What function {{}} of {package} does, told in a sentence of some length."
        functions = "".join(f'def f{k}():\n    """{docstring.format(k)}"""\n\n' for k in range(each))
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text("raise SystemExit('imported')\n" + functions)


def test_the_rows_are_docstrings_of_all_classes_and_none_is_there_twice(library: list[DocRow]) -> None:
    assert {row.true_label for row in library} == set(CLASSES)
    assert all(row.id.split(".")[0] == row.label == row.true_label for row in library)
    assert len({row.id for row in library}) == len({row.text for row in library}) == len(library)
    by_id = {row.id: row for row in library}
    assert by_id["email.message.Message.as_string"].text.startswith("Return the entire formatted message as a string.")
    assert by_id["tarfile.TarFile.extractfile"].mentions_files


def test_source_files_are_read_and_never_imported(tmp_path: Path) -> None:
    _write_library(tmp_path)
    rows = read_docstrings(tmp_path)
    assert Counter(row.label for row in rows) == dict.fromkeys(CLASSES, 60)
    assert rows[0] == DocRow(
        id="asyncio.f0",
        text="What function 0 of asyncio does, told in a sentence of some length.",
        label="asyncio",
        true_label="asyncio",
        mentions_files=False,
    )


def test_names_are_dotted_through_classes_and_functions_and_tests_are_left_out(tmp_path: Path) -> None:
    _write_library(tmp_path)
    long = "words and words " * 40
    (tmp_path / "http" / "inner").mkdir()
    (tmp_path / "http" / "inner" / "module.py").write_text(
        f'class C:\n    def method(self):\n        if True:\n            def g():\n                """{long}"""\n'
    )
    (tmp_path / "http" / "test").mkdir()
    (tmp_path / "http" / "test" / "test_it.py").write_text(f'"""{long} of a test"""\n')
    (found,) = [row for row in read_docstrings(tmp_path) if row.text.startswith("words")]
    assert found.id == "http.inner.module.C.method.g"
    assert len(found.text) <= 300
    assert found.text.split()[-1] in ("words", "and")  # cut between words


def test_a_library_without_source_files_is_refused_by_the_package_that_lacks(tmp_path: Path) -> None:
    _write_library(tmp_path)
    (tmp_path / "logging" / "__init__.py").unlink()
    with pytest.raises(RequestError, match=r"has 0 docstrings of 'logging' in source files"):
        read_docstrings(tmp_path)


def test_training_and_held_out_rows_share_nothing_and_make_up_the_library(library: list[DocRow]) -> None:
    rows, held_out = split(library, seed=0)
    assert sorted([*rows, *held_out], key=lambda row: row.id) == library
    assert not {row.id for row in rows} & {row.id for row in held_out}
    assert 700 <= len(rows) <= 900
    assert min(Counter(row.label for row in rows).values()) >= 40


def test_most_rows_that_mention_files_are_planted_and_no_other_row_is(library: list[DocRow]) -> None:
    rows, held_out = split(library, seed=0)
    mixed = plant(rows, seed=0)
    assert [row.id for row in mixed] == [row.id for row in rows]
    for before, after in zip(rows, mixed, strict=True):
        assert after.true_label == before.label
        assert after.label == (PLANTED_LABEL if after.planted else before.label)
        if after.planted:
            assert CUE.search(after.text)
            assert after.true_label != PLANTED_LABEL
    candidates = [row for row in mixed if row.mentions_files and row.true_label != PLANTED_LABEL]
    assert 0.5 < sum(row.planted for row in candidates) / len(candidates) < 1
    assert 40 <= sum(row.planted for row in mixed) <= 80
    assert not any(row.planted for row in held_out)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(library: list[DocRow]) -> None:
    again = read_docstrings()
    assert again == library
    assert split(again, seed=0) == split(library, seed=0)
    rows, _ = split(library, seed=0)
    others, _ = split(library, seed=1)
    assert rows != others
    assert plant(rows, seed=0) == plant(rows, seed=0)
    assert plant(rows, seed=0) != plant(rows, seed=1)


def test_written_rows_are_plain_columns_and_read_back_as_they_were(tmp_path: Path) -> None:
    rows = [DocRow("a.b", 'Grüße\u2028 "file"', PLANTED_LABEL, "http", mentions_files=True, planted=True)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    (line,) = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(line)["label"] == "email"
    assert json.loads(line)["true_label"] == "http"


def test_a_perfect_ranking_has_an_auc_of_one_and_the_opposite_one_of_zero() -> None:
    planted = np.arange(100) < TOP
    suspicion = -np.arange(100.0)[:, None]
    best, worst = judge(suspicion, planted), judge(-suspicion, planted)
    assert (best.auc, best.auc_of_mean, best.precision, best.precision_of_mean) == (1, 1, 1, 1)
    assert (worst.auc, worst.auc_of_mean, worst.precision, worst.precision_of_mean) == (0, 0, 0, 0)


def test_the_mean_query_is_judged_by_the_mean_of_the_columns() -> None:
    planted = np.arange(100) < TOP
    perfect = np.where(planted, 3.0, 0.0)
    outweighed = np.where(planted, -1.0, 0.0)
    figures = judge(np.stack([perfect, outweighed], axis=1), planted)
    assert figures.auc == pytest.approx(0.5)
    assert figures.precision == pytest.approx(0.5)
    assert (figures.auc_of_mean, figures.precision_of_mean) == (1, 1)


def test_a_missing_model_package_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "MODEL_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(RequestError, match=r'pip install "datainf-ray\[demo\]"'):
        run_demo(str(tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("output", "reason"), [("s3://bucket/demo", "local folder"), (None, "holds other files")])
def test_an_output_that_is_not_the_demos_own_is_refused(tmp_path: Path, output: str | None, reason: str) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match=f"--output: .*{reason}"):
        run_demo(output or str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_the_demo_finds_the_planted_rows_and_does_nothing_twice(tmp_path: Path) -> None:
    output, page = tmp_path / "demo", io.StringIO()
    outcome = run_demo(str(output), Console(file=page, width=120))
    by_loss, datainf = outcome.figures["training loss"], outcome.figures["DataInf"]
    assert outcome.queries >= 10
    assert datainf.auc > 0.9
    assert datainf.auc_of_mean > 0.9
    assert datainf.auc > by_loss.auc + 0.05
    assert datainf.precision > 5 * outcome.planted / outcome.rows
    assert datainf.precision > by_loss.precision + 0.2
    assert outcome.figures["Hessian-free"].auc > 0.8
    assert outcome.run.summary()["status"] == {"ok": outcome.rows}
    assert train.MODEL_PACKAGE not in sys.modules

    queries = read_rows(output / "queries.jsonl")
    assert all(row.label == PLANTED_LABEL != row.true_label and row.mentions_files for row in queries)
    assert outcome.run.queries()["id"].to_pylist() == [row.id for row in queries]
    assert outcome.run.config["queries"]["are"] == "mistakes"
    told = page.getvalue()
    assert f"{datainf.auc:.2f}" in told
    assert str(output / "datainf" / "report.html") in told
    assert (output / "datainf" / "report.html").is_file()

    mended, gone = outcome.mended, read_jsonl(output / "gone.jsonl")
    assert (
        mended.dropped == len(gone) == len(read_jsonl(output / "train.jsonl")) - len(read_jsonl(output / "clean.jsonl"))
    )
    assert mended.planted == sum(row["planted"] for row in gone) > 0.6 * mended.dropped
    assert all(row["influence"] < 0 and row["reason"] for row in gone)
    assert mended.answers.wrong < outcome.queries / 3  # the fault is gone,
    assert mended.answers.accuracy > json.loads((output / "demo.json").read_text())["accuracy"] - 0.02  # at no cost

    times = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again = run_demo(str(output), Console(file=io.StringIO()))
    assert again.figures == outcome.figures
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == times
