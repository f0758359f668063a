"""The figures against scikit-learn, numbers by hand, random orders, and a bootstrap written as a loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from datainf_ray.evaluation.figures import (
    by_chance,
    figures_of,
    interval,
    levels_of,
    resampled_queries,
    resampled_rows,
)


def draw(rows: int, true: int, seed: int, ties: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores that say something of the truth, and the truth; with `ties`, so many distinct scores at most."""
    random = np.random.default_rng(seed)
    truth = random.permutation(rows) < true
    scores = random.normal(size=rows) + truth
    return (scores if ties is None else np.floor(scores * ties / 6)), truth


def in_order(scores: np.ndarray, truth: np.ndarray, ks: list[int]) -> list[float]:
    """MRR and recalls of rows whose scores all differ, from their definition."""
    there = truth[np.argsort(-scores)]
    return [1 / (there.argmax() + 1), *(there[:k].sum() / truth.sum() for k in ks)]


@pytest.mark.parametrize("ties", [None, 3, 40])
@pytest.mark.parametrize(("rows", "true"), [(2, 1), (30, 1), (30, 29), (200, 40)])
def test_the_figures_are_scikit_learns(rows: int, true: int, ties: int | None) -> None:
    scores, truth = draw(rows, true, rows + true, ties)
    found = figures_of(levels_of(scores, truth), [])
    assert found[:2] == pytest.approx([roc_auc_score(truth, scores), average_precision_score(truth, scores)], rel=1e-12)


def test_recall_and_mrr_are_what_they_are_called() -> None:
    for seed in range(20):
        scores, truth = draw(50, 7, seed)
        ks = [1, 7, 8, 49, 50]
        assert figures_of(levels_of(scores, truth), ks)[2:] == pytest.approx(in_order(scores, truth, ks), rel=1e-12)


def test_ties_count_as_orders_of_them_do_on_average() -> None:
    """Three first rows with one score, the true one among them; of the next four two are true."""
    scores = np.array([5, 5, 5, 3, 3, 3, 3, 1.0])
    truth = np.array([0, 1, 0, 1, 1, 0, 0, 0], bool)
    found = figures_of(levels_of(scores, truth), [1, 3, 5, 7, 100])
    assert found[2:] == pytest.approx([1 / 2, 1 / 9, 1 / 3, (1 + 1) / 3, 1, 1])
    random = np.random.default_rng(0)
    orders = [random.permutation(8) for _ in range(20_000)]
    recall = np.mean([truth[o[np.argsort(-scores[o], kind="stable")]][:5].sum() / 3 for o in orders])
    assert found[5] == pytest.approx(recall, abs=0.01)
    turned = figures_of(levels_of(scores[::-1], truth[::-1]), [1, 3, 5, 7, 100])
    assert turned.tolist() == found.tolist()


def test_rows_without_a_score_come_last() -> None:
    scores, truth = draw(60, 20, 1)
    known = scores.copy()
    scores[::4] = np.nan
    known[::4] = -1e9
    want = figures_of(levels_of(known, truth), [5, 20])
    assert figures_of(levels_of(scores, truth), [5, 20]).tolist() == want.tolist()
    assert want[0] == pytest.approx(roc_auc_score(truth, known), rel=1e-12)


@pytest.mark.parametrize(("rows", "true"), [(2, 1), (12, 1), (10, 4), (9, 8)])
def test_chance_is_the_mean_over_all_orders(rows: int, true: int) -> None:
    ks, scores = [1, 4], -np.arange(float(rows))
    orders = [
        figures_of(levels_of(scores, np.isin(np.arange(rows), places)), ks)
        for places in itertools.combinations(range(rows), true)
    ]
    assert by_chance(rows, true, ks) == pytest.approx(np.mean(orders, axis=0), rel=1e-12)


@pytest.mark.parametrize(("rows", "true", "ties"), [(120, 30, None), (120, 30, 6), (400, 4, None)])
def test_the_interval_is_that_of_a_loop_over_resamples(rows: int, true: int, ties: int | None) -> None:
    """The last has so few levels for its rows that their counts are drawn at once."""
    scores, truth = draw(rows, true, 5, ties)
    levels = levels_of(scores, truth)
    found = interval(resampled := resampled_rows(levels, [true], 4000, seed=0))
    random = np.random.default_rng(1)
    loop = []
    for _ in range(1500):
        rows_drawn = np.concatenate([random.choice(part, len(part)) for part in map(np.flatnonzero, (truth, ~truth))])
        loop.append(figures_of(levels_of(scores[rows_drawn], truth[rows_drawn]), [true]))
    smooth = [0, 1, 3]  # MRR takes few values, and a quantile lies on one or the next
    np.testing.assert_allclose(found[smooth], interval(np.array(loop))[smooth], atol=0.03)
    np.testing.assert_allclose(resampled.mean(axis=0), np.mean(loop, axis=0), atol=0.02)
    auc = roc_auc_score(truth, scores)
    assert found[0, 0] < auc < found[0, 1]
    assert np.array_equal(found, interval(resampled_rows(levels, [true], 4000, seed=0)))
    assert not np.array_equal(found, interval(resampled_rows(levels, [true], 4000, seed=1)))


def test_means_over_queries_vary_as_their_standard_error_says() -> None:
    figures = np.random.default_rng(2).normal(size=(100, 3))
    low, high = interval(resampled_queries(figures, 4000, seed=0)).T
    error = figures.std(axis=0) / 10
    np.testing.assert_allclose(low, figures.mean(axis=0) - 1.96 * error, atol=0.02)
    np.testing.assert_allclose(high, figures.mean(axis=0) + 1.96 * error, atol=0.02)
