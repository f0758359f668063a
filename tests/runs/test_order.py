"""The first k rows of an order, against sorting."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from datainf_ray.runs.order import cuts


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(8))
def test_cuts_are_where_sorting_has_them(kind: type, seed: int) -> None:
    """Ties, zeros of both signs, infinities, missing values, groups without rows, and more wanted than there are."""
    draw = np.random.default_rng(seed)
    count, groups = int(draw.integers(1, 900)), 4
    values = np.round(draw.standard_t(2, count), int(draw.integers(0, 5))).astype(kind)
    values[draw.random(count) < 0.1] = np.nan
    values[draw.random(count) < 0.1] = -0.0
    values[draw.random(count) < 0.02] = np.inf
    of = draw.integers(0, groups - 1, count)
    wanted = draw.integers(0, count // 2 + 2, groups)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, count, 100):
            yield of[start : start + 100], values[start : start + 100]

    before = cuts(blocks, wanted).before()
    found = np.concatenate([before(*block) for block in blocks()])
    want = np.zeros(count, bool)
    for group in range(groups):
        there = [row for row in range(count) if of[row] == group and not np.isnan(values[row])]
        want[sorted(there, key=lambda row: (-values[row], row))[: wanted[group]]] = True
    np.testing.assert_array_equal(found, want)


def test_zeros_of_both_signs_are_equal() -> None:
    values, of = np.array([-0.0, 0.0, -0.0, 0.0, -1.0]), np.zeros(5, np.int64)
    for wanted in range(5):
        before = cuts(lambda: iter([(of, values)]), np.array([wanted])).before()
        assert before(of, values).tolist() == [row < wanted for row in range(5)]
