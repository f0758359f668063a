"""Which rows stay, against what sorting by hand says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datainf_ray
from tests.curate.conftest import Make, rows_of, write

ROWS, QUERIES = 60, 4
NAN = np.nan


@pytest.fixture
def influence() -> np.ndarray:
    """Queries of very different sizes; rows 5 and 33 have no score, and some rows are equal."""
    draw = np.random.default_rng(3)
    values = draw.standard_t(3, (ROWS, QUERIES)) * [1, 1e-6, 30, 0.1]
    values[[5, 33]] = NAN
    values[20:24] = values[20]
    return values.astype(np.float32)


@pytest.fixture
def run(make: Make, tmp_path: Path, influence: np.ndarray) -> datainf_ray.Run:
    write(tmp_path / "data" / "a.jsonl", rows_of(ROWS))
    return make("data/a.jsonl", influence)


def blame(influence: np.ndarray, because: str) -> np.ndarray:
    """Rows × queries in root mean squares, worse is more."""
    values = influence.astype(np.float64)
    values = values / np.sqrt(np.nanmean(values**2, axis=0))
    return values if because == "harmful" else -values


def worst(score: np.ndarray) -> list[int]:
    """The rows that have a score, the most to blame first, then by number."""
    return sorted(np.flatnonzero(~np.isnan(score)).tolist(), key=lambda row: (-score[row], row))


def stay(run: datainf_ray.Run, **asked: Any) -> set[int]:
    return set(run.selected(**asked)["row"].to_pylist())


def gone(run: datainf_ray.Run, **asked: Any) -> list[int]:
    """The rows that go, by rank."""
    table = run.selected(gone=True, **asked).sort_by("rank")
    assert table["rank"].to_pylist() == list(range(1, len(table) + 1))
    return table["row"].to_pylist()


@pytest.mark.parametrize("because", ["helpful", "harmful"])
@pytest.mark.parametrize("across", ["mean", "max", "votes"])
def test_the_rows_most_to_blame_go(run: datainf_ray.Run, influence: np.ndarray, because: str, across: str) -> None:
    each = blame(influence, because)
    mean = each.mean(axis=1)
    score = {"mean": mean, "max": each.max(axis=1)}.get(across)
    if score is None:
        votes = np.zeros(ROWS)
        for query in range(QUERIES):
            votes[worst(each[:, query])[:6]] += 1
        want = sorted(worst(mean), key=lambda row: (-votes[row], -mean[row], row))[:6]
    else:
        want = worst(score)[:6]
    assert gone(run, drop=6, because=because, across=across) == want
    assert gone(run, drop="10%", because=because, across=across) == want
    assert stay(run, drop=6, because=because, across=across) == set(range(ROWS)) - set(want)


def test_rows_above_a_number_of_root_mean_squares_go(run: datainf_ray.Run, influence: np.ndarray) -> None:
    score = blame(influence, "harmful").mean(axis=1)
    want = [row for row in worst(score) if score[row] > 0.5]
    assert 0 < len(want) < 30
    assert gone(run, drop_above=0.5, because="harmful") == want


def test_the_least_to_blame_are_selected(run: datainf_ray.Run, influence: np.ndarray) -> None:
    for because in ("helpful", "harmful"):
        score = -blame(influence, because).mean(axis=1)
        assert stay(run, select=9, because=because) == set(worst(score)[:9])


def test_a_column_is_balanced(run: datainf_ray.Run, influence: np.ndarray) -> None:
    """11 of three topics: 4, 4, 3; and where one has fewer rows the others have more."""
    score = -blame(influence, "harmful").mean(axis=1)
    topics = {topic: [row for row in worst(score) if row % 3 == topic] for topic in range(3)}
    want = {*topics[0][:4], *topics[1][:4], *topics[2][:3]}
    assert stay(run, select=11, because="harmful", per="topic") == want
    assert len(stay(run, select=58, because="harmful", per="topic")) == 58
    assert stay(run, select=4, because="harmful", per="n") == {0, 1, 2, 3}  # of all different, the first values


def test_queries_take_turns(run: datainf_ray.Run, influence: np.ndarray) -> None:
    each = -blame(influence, "harmful")
    orders = [worst(each[:, query]) for query in range(QUERIES)]
    taken: list[int] = []
    while len(taken) < 50:
        for order in orders:
            if len(taken) < 50:
                taken.append(next(row for row in order if row not in taken))
    for count in (1, 6, 50):
        assert stay(run, select=count, because="harmful", per="query") == set(taken[:count])


def test_the_middle_stays(run: datainf_ray.Run, influence: np.ndarray) -> None:
    score = blame(influence, "harmful").mean(axis=1)
    order = worst(-score)  # 58 rows
    assert stay(run, between=("q30", "q70"), because="harmful") == set(order[17:41])
    with_others = stay(run, between=("q30", "q70"), because="harmful", without_score="keep")
    assert with_others == {*order[17:41], 5, 33}


def test_rows_without_a_score(run: datainf_ray.Run) -> None:
    assert {5, 33} <= stay(run, drop=50, because="helpful")
    table = run.selected(drop=2, because="helpful", without_score="drop", gone=True).to_pylist()
    assert [row["row"] for row in table if row["reason"] == "no score: no_target_tokens"] == [5, 33]
    assert all(row["rank"] is row["influence"] is row["query"] is None for row in table if row["row"] in (5, 33))
    done = run.curate(dry_run=True, drop=2, because="helpful")
    assert (done.without_score, done.without_score_kept, done.kept) == ({"no_target_tokens": 2}, 2, 58)


def test_what_is_said_of_a_row(run: datainf_ray.Run, influence: np.ndarray) -> None:
    each = blame(influence, "helpful")
    score = each.mean(axis=1)
    (row,) = run.selected(drop=1, because="helpful", gone=True).to_pylist()
    at, query = worst(score)[0], int(np.argmax(each[worst(score)[0]]))
    assert row["row"] == at
    assert row["id"] == f"sft-{at // 16:02d}.parquet#{at % 16}"
    assert row["query"] == f"eval.jsonl#{query}"
    assert row["influence"] == influence[at, query]
    assert row["share"] == pytest.approx(score[at] / np.maximum(np.nan_to_num(score), 0).sum(), rel=1e-5)
    assert row["reason"] == "among the 1 row that lowers the loss of the queries most"


def test_a_sample_is_by_weight_and_by_its_seed(run: datainf_ray.Run, influence: np.ndarray) -> None:
    """Over many seeds the first row that is drawn is one in proportion to its weight."""
    score = blame(influence, "harmful").mean(axis=1)
    weight = 2 / (1 + np.exp(score / np.sqrt(np.nanmean(score**2)) / 0.5))
    weight[np.isnan(weight)] = 0
    counts = np.zeros(ROWS)
    for seed in range(120):
        counts[list(stay(run, sample=1, because="harmful", temperature=0.5, seed=seed))] += 1
    heavy = weight > np.median(weight)
    share, want = counts[heavy].sum() / 120, weight[heavy].sum() / weight.sum()
    assert abs(share - want) < 4 * np.sqrt(want * (1 - want) / 120)
    first, again, other = (stay(run, sample=20, because="harmful", seed=seed) for seed in (1, 1, 2))
    assert len(first) == 20
    assert first == again != other


def test_several_runs_bring_more_queries(run: datainf_ray.Run, make: Make, influence: np.ndarray) -> None:
    more = np.random.default_rng(8).normal(size=(ROWS, 2)).astype(np.float32)
    more[7] = NAN
    other = make("data/a.jsonl", more, name="other")
    both = np.concatenate([influence, more], axis=1)
    both[[5, 7, 33]] = NAN
    score = blame(both, "harmful").mean(axis=1)
    table = run.selected(other.url, drop=5, because="harmful", gone=True).sort_by("rank")
    assert table["row"].to_pylist() == worst(score)[:5]


def test_rows_are_named(run: datainf_ray.Run) -> None:
    assert sorted(gone(run, ids=["sft-01.parquet#3", "7"])) == [7, 19]


def test_near_duplicates_go_too(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("rensa", reason="pip install 'datainf-ray[curate]'")
    words = np.random.default_rng(0).integers(0, 500, (30, 60))
    rows = [{"prompt": " ".join(f"w{w}" for w in row), "completion": "yes"} for row in words]
    rows[12] = {"prompt": rows[4]["prompt"].upper() + "!", "completion": "yes"}
    rows[25] = {"prompt": rows[4]["prompt"].replace("w", "x", 1), "completion": "yes"}
    rows[26] = {"prompt": rows[4]["prompt"][: len(rows[4]["prompt"]) // 2], "completion": "yes"}  # half of it: another
    kept = rows[4]["prompt"].split()[:45]  # 3 of 5 triples are the same
    rows[27] = {"prompt": " ".join([*kept, *rows[5]["prompt"].split()[:15]]), "completion": "yes"}
    write(tmp_path / "data" / "a.jsonl", rows)
    influence = np.zeros(30)
    influence[4], influence[25] = 5, NAN
    run = make("data/a.jsonl", influence)
    table = run.selected(drop=1, because="harmful", near_duplicates=True, gone=True)
    assert table["row"].to_pylist() == [4, 12, 25]
    assert table["reason"].to_pylist()[1:] == ["nearly the text of row 4"] * 2
    done = run.curate(dry_run=True, drop=1, because="harmful", near_duplicates=True)
    assert (done.dropped, done.near_duplicates, done.kept) == (1, 2, 27)
