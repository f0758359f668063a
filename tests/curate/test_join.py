"""The corpus' rows with their scores, in Python."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import datainf_ray
from tests.curate.conftest import Make, rows_of, write

INFLUENCE = np.array([[1.0, -3.0], [2.0, np.nan], [-1.0, 1.0], [0.5, 2.0]] * 5)
INFLUENCE[1::4] = np.nan


@pytest.fixture
def run(make: Make, tmp_path: Path) -> datainf_ray.Run:
    rows = [row | {"status": "kept"} for row in rows_of(20)]
    (tmp_path / "data").mkdir()
    for name, some in (("a.jsonl.gz", rows[:7]), ("b.parquet", rows[7:16]), ("c.arrow", rows[16:])):
        write(tmp_path / "data" / name, some)
    return make("data", INFLUENCE)


def test_rows_are_joined_with_their_scores(run: datainf_ray.Run, tmp_path: Path) -> None:
    rms = np.sqrt(np.nanmean(INFLUENCE**2, axis=0))
    found = list(run.join())
    ids = run.examples(["id"])["id"].to_pylist()
    for n, row in enumerate(found):
        asked = rows_of(1, first=n)[0] | {"status": "kept"}
        assert {key: row[key] for key in asked} == asked
        assert (row["row"], row["id"]) == (n, ids[n])
        if n % 4 == 1:
            assert (row["datainf_status"], row["influence"], row["influence_min"]) == ("no_target_tokens", None, None)
        else:
            assert row["datainf_status"] == "ok"
            assert row["influence"] == pytest.approx((INFLUENCE[n] / rms).mean(), rel=1e-6)
            assert (row["influence_mean"], row["influence_max"]) == (INFLUENCE[n].mean(), INFLUENCE[n].max())
    assert len(found) == 20


def test_they_are_a_dataset(run: datainf_ray.Run) -> None:
    rows = list(run.to_dataset())
    assert rows == list(run.join())
    harmful = run.to_dataset().filter(lambda row: (row["influence"] or 0) > 0)
    assert [row["n"] for row in harmful] == [n for n in range(20) if n % 4 == 3]


def test_without_the_library_it_is_one_line(run: datainf_ray.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(datainf_ray.RequestError, match="needs a package that is not installed; pip install datasets"):
        run.to_dataset()


def test_what_is_wrong_is_said_at_once(run: datainf_ray.Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "b.parquet").unlink()
    with pytest.raises(datainf_ray.RequestError, match="is not the corpus of"):
        run.join()


def test_the_run_that_users_are_given_can_do_it(run: datainf_ray.Run) -> None:
    table = run.selected(drop=2, because="harmful")
    assert table.column_names == ["row", "id", "score"]
    assert table.num_rows == 18
    assert table["score"].null_count == 5
    assert run.evaluate(truth="topic=a", side="harmful", resamples=0, bm25=False).table().num_rows > 0
