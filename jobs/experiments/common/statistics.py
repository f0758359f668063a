"""Numbers with their uncertainty, for tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from datainf_ray.evaluation.figures import figures_of, levels_of


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(stats.spearmanr(one, other).statistic)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and half the width of its 95 % interval, by Student's t: 0 of one value, nan of none."""
    found = np.asarray(values, dtype=float)
    if not len(found):
        return float("nan"), 0.0
    if len(found) < 2:
        return float(found.mean()), 0.0
    spread = found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean()), float(stats.t.ppf(0.975, len(found) - 1) * spread)


def told(values: Sequence[float], digits: int) -> str:
    """`mean ± half` of `mean_interval`; of a single value, which has no interval, the value."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f}" if len(values) < 2 else f"{mean:.{digits}f} ± {half:.{digits}f}"


def bootstrap(
    values: np.ndarray, of: Callable[[np.ndarray], float] = np.mean, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """`of(values)`, and the 2.5 and 97.5 percent points of it over resamples of the values' first dimension."""
    draw = np.random.default_rng(seed)
    found = [of(values[draw.integers(0, len(values), len(values))]) for _ in range(resamples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(of(values)), float(low), float(high)


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The chance that a row of the truth has a higher score than another one has; ties count half."""
    return float(figures_of(levels_of(scores, truth), ())[0])


def recall(scores: np.ndarray, truth: np.ndarray) -> float:
    """The share of the truth among as many rows of the highest scores; of rows that tie, what a random order gives."""
    return float(figures_of(levels_of(scores, truth), (int(truth.sum()),))[-1])
