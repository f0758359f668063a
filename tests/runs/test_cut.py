"""Where to cut: nothing where nothing stands out, the planted rows where they do, and curves against sorting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import datainf_ray
from datainf_ray.runs.cut import Cut, cut_of
from datainf_ray.runs.gaps import apart
from datainf_ray.runs.magnitudes import Magnitudes
from tests.runs.conftest import Made, make_run

Draw = np.random.Generator

NOISE: dict[str, Callable[[Draw, int], np.ndarray]] = {
    "normal": lambda draw, n: draw.normal(size=n),
    "Student's t of 3 degrees": lambda draw, n: draw.standard_t(3, n),
    "Student's t of 1.5 degrees": lambda draw, n: draw.standard_t(1.5, n),
    "of many scales": lambda draw, n: draw.normal(size=n) * draw.lognormal(0, 1, n),
    "one-sided": lambda draw, n: draw.lognormal(0, 1, n),
    "uniform": lambda draw, n: draw.uniform(-1, 1, n),
}


def standing(values: np.ndarray, level: float = 0.02) -> tuple[int, int]:
    """How many stand apart on the lower and on the upper side, as a run's rows on one query would."""
    counted, centred = Magnitudes(1), Magnitudes(1)
    values = (values / np.sqrt((values**2).mean()))[:, None]
    counted.add(values)
    centred.add(values - counted.median(0))
    return apart(centred.side(0, False), level)[0], apart(centred.side(0, True), level)[0]


@pytest.mark.parametrize("name", NOISE)
def test_noise_has_rows_that_stand_out_no_more_often_than_it_is_said(name: str) -> None:
    """2 in 100 of each side: of 800 sides 16, and 29 with a probability of 0.2 %."""
    found = [rows > 0 for seed in range(400) for rows in standing(NOISE[name](np.random.default_rng(seed), 1000))]
    assert sum(found) < 29


@pytest.mark.parametrize("rows", [1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("name", ["normal", "Student's t of 3 degrees"])
def test_noise_of_any_size_has_none(name: str, rows: int) -> None:
    for seed in range(3 if rows < 1_000_000 else 1):
        assert standing(NOISE[name](np.random.default_rng(seed), rows)) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "planted", "noise", "low", "high", "least"),
    [
        (160, 13, "normal", 15, 30, 38), (10_000, 20, "normal", 7, 12, 38), (10_000, 1, "normal", 15, 30, 38),
        (100_000, 1000, "normal", 8, 12, 40), (10_000, 20, "Student's t of 3 degrees", 150, 300, 30),
    ],
)  # fmt: skip
def test_what_is_clearly_apart_is_found_and_no_more(
    rows: int, planted: int, noise: str, low: float, high: float, least: int
) -> None:
    """In at least so many of 40 draws exactly; on the other side nothing."""
    right = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        values = NOISE[noise](draw, rows)
        values[:planted] = draw.uniform(low, high, planted)
        right += standing(values) == (0, planted)
        assert right + 40 - seed > least, f"{seed + 1 - right} of {seed + 1} are wrong"


def test_rows_that_are_all_there_several_times_do_not_stand_out_more_often() -> None:
    found = 0
    for seed in range(200):
        values = np.repeat(np.random.default_rng(seed).standard_t(3, 200), 5)
        found += sum(rows > 0 for rows in standing(values))
    assert found < 40  # of 400: some more than the level has, and far fewer than without a look at copies


def test_one_row_far_above_others_that_stand_out_does_not_hide_them() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=5000)
    values[:13] = [1e6, *draw.uniform(40, 60, 12)]
    assert standing(values) == (0, 13)


def made_of(folder: Path, influence: np.ndarray, name: str = "run") -> Made:
    values = np.array(influence, np.float32)
    values = values[:, None] if values.ndim == 1 else values
    missing, chunk = np.isnan(values[:, 0]), max(1000, len(values) // 8)
    return make_run(str(folder / name), *values.shape, influence=values, missing=missing, chunk=chunk)


def planted(seed: int, rows: int, queries: int, count: int, size: float) -> np.ndarray:
    """Noise on each query, and the rows 3, 10, 17, … are harmful to all; every 50th row has no score."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(rows, queries))
    values[3 : 3 + 7 * count : 7] = size + draw.uniform(0, 4, (count, queries))
    values[49::50] = np.nan
    return values * [10.0**-q for q in range(queries)]  # queries are of different sizes


@pytest.mark.parametrize(("rows", "count"), [(160, 13), (10_000, 20)])
def test_rows_planted_for_several_queries_are_suggested(rows: int, count: int, tmp_path: Path) -> None:
    run = made_of(tmp_path, planted(1, rows, 6, count, 8)).run
    cut = cut_of(run)
    harmful, helpful = cut.of("harmful"), cut.of("helpful")
    assert (harmful.stand_out, helpful.stand_out) == (count, 0)
    assert harmful.by_chance is not None
    assert harmful.by_chance < 0.1 * count
    assert harmful.p < 1e-3
    assert (helpful.p, helpful.above, helpful.share) == (1.0, None, 0.0)
    assert len(cut.sides) == 2 * (1 + 6)
    assert [one.query for one in cut.each("harmful")] == list(range(6))
    assert cut == cut_of(run)
    assert json.loads(json.dumps(cut.as_dict()))["scored"] == rows - rows // 50


def test_shares_elbow_and_curve_are_those_of_the_sorted_rows(tmp_path: Path) -> None:
    made = made_of(tmp_path, planted(2, 3000, 3, 9, 9))
    values = made.influence[~np.isnan(made.influence[:, 0])].astype(np.float64)
    mean = (values / np.sqrt((values**2).mean(axis=0))).mean(axis=1)
    cut = cut_of(made.run)
    for sign, one in ((1, cut.of("harmful")), (-1, cut.of("helpful"))):
        ordered = np.sort(sign * mean)[::-1]
        ordered = ordered[ordered > 0]
        shares = np.concatenate([[0], np.cumsum(ordered)]) / ordered.sum()
        assert one.rows == len(ordered)
        assert len(one.curve.rows) <= 200
        assert one.curve.rows[:10] == tuple(range(10))
        assert one.curve.rows[-1] == len(ordered)
        np.testing.assert_allclose(one.curve.share, shares[list(one.curve.rows)], atol=2e-4)
        heights = shares - np.arange(len(shares)) / len(ordered)
        assert one.elbow.sharpness == pytest.approx(heights.max(), abs=1e-3)
        assert one.elbow.rows == pytest.approx(heights.argmax(), rel=0.03)
        assert one.chance_elbow is not None
        assert one.curve.chance is not None
    harmful = cut.of("harmful")
    assert harmful.share == pytest.approx(np.sort(mean)[::-1][:9].sum() / mean[mean > 0].sum(), rel=1e-6)
    assert harmful.above is not None
    assert (mean > harmful.above).sum() == 9


def test_rows_that_one_query_alone_means_do_not_stand_out_of_all(tmp_path: Path) -> None:
    """Of four queries each means other rows: together they would be eighty, and chance puts as many there."""
    draw = np.random.default_rng(3)
    values = draw.normal(size=(10_000, 4))
    for query in range(4):
        values[1000 * query : 1000 * query + 20, query] = draw.uniform(30, 40, 20)
    cut = cut_of(made_of(tmp_path, values).run)
    assert [one.stand_out for one in cut.each("harmful")] == [20] * 4
    assert cut.of("harmful").stand_out == 0


def test_queries_that_agree_on_all_rows_make_none_stand_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    values = draw.normal(size=(5000, 1)) + 0.1 * draw.normal(size=(5000, 5))
    assert [one.stand_out for one in cut_of(made_of(tmp_path, values).run).sides] == [0] * 12


def test_rows_far_from_all_others_count_for_the_side_that_they_are_on(tmp_path: Path) -> None:
    """All rows help, and those far from the others help less, or a few harm: only these are harmful."""
    values = np.random.default_rng(5).normal(-50, 1, size=4000)
    values[:7], values[7:12] = -20, np.linspace(2, 3, 5)
    cut = cut_of(made_of(tmp_path, values).run)
    assert cut.of("harmful").stand_out == 5
    assert cut.of("harmful").rows == 5
    assert cut.of("helpful").stand_out == 0
    assert cut.of("harmful").chance_elbow is None


@pytest.mark.parametrize("values", [np.zeros(50), np.ones(50), np.arange(3.0), np.full((40, 2), -1.0), [1e-30] * 9])
def test_there_is_an_answer_where_there_is_nothing_to_tell(values: np.ndarray, tmp_path: Path) -> None:
    cut = cut_of(made_of(tmp_path, np.array(values)).run)
    assert {one.stand_out for one in cut.sides} == {0}
    for one in cut.sides:
        assert all(np.isfinite([one.share, one.p, one.elbow.sharpness, *one.curve.share]))
    assert "stands out of what chance would give" in str(cut)
    assert f"{len(values)} rows are too few to tell: it takes 120" in str(cut)


def test_portions_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_of(tmp_path, planted(6, 3000, 3, 9, 9)).run
    whole = cut_of(run)
    monkeypatch.setattr("datainf_ray.runs.scores.BLOCK", 256)
    parts = cut_of(run)
    assert parts.of("harmful").stand_out == 9
    for one, other in zip(whole.sides, parts.sides, strict=True):  # but for what is drawn
        np.testing.assert_allclose(other.curve.share, one.curve.share, atol=1e-9)
        assert (other.stand_out, other.above, other.elbow.rows) == (one.stand_out, one.above, one.elbow.rows)


def test_a_run_knows_it(tmp_path: Path) -> None:
    run = datainf_ray.open_run(made_of(tmp_path, planted(7, 400, 3, 9, 12)).run.url)
    cut = run.cut()
    assert isinstance(cut, Cut)
    assert cut.of("harmful").stand_out == 9
    assert "9 harmful rows stand out, with " in str(cut)
