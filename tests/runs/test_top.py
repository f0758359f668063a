from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from datainf_ray.runs import top
from datainf_ray.runs.schemas import top_schema
from datainf_ray.runs.top import Top, merge_top, select_top, top_table


def _texts(rows: np.ndarray) -> pa.Table:
    return pa.table({"row": rows, "id": [f"f#{r}" for r in rows], "preview": [f"text {r}" for r in rows]})


def _select(influence: np.ndarray, rows: np.ndarray, k: int) -> Top:
    return select_top(influence, rows, _texts(rows), k)


def _by_hand(influence: np.ndarray, k: int) -> list[dict]:
    """top.parquet by sorting Python lists; row r is at index r."""
    out = []
    for query in range(influence.shape[1]):
        for direction, sign in (("helpful", -1), ("harmful", 1)):
            scored = [(float(v), r) for r, v in enumerate(influence[:, query]) if sign * v > 0]
            for rank, (value, row) in enumerate(sorted(scored, key=lambda s: (-sign * s[0], s[1]))[:k], 1):
                names = {"row": row, "id": f"f#{row}", "influence": value, "preview": f"text {row}"}
                out.append({"query": query, "direction": direction, "rank": rank, **names})
    return out


@pytest.fixture
def influence() -> np.ndarray:
    """200 rows × 4 queries with ties, zeros and rows without a score."""
    draw = np.random.default_rng(3)
    values = draw.integers(-6, 7, size=(200, 4)).astype(np.float32)
    values[draw.random(200) < 0.2] = np.nan
    return values


@pytest.mark.parametrize("k", [1, 5, 40, 1000])
def test_one_selection_is_what_sorting_gives(influence: np.ndarray, k: int) -> None:
    table = top_table(_select(influence, np.arange(200), k))
    assert table.schema == top_schema()
    assert table.to_pylist() == _by_hand(influence, k)


@pytest.mark.parametrize("k", [1, 5, 40, 1000])
def test_merging_in_any_order_and_grouping_gives_the_same(influence: np.ndarray, k: int) -> None:
    expected = _by_hand(influence, k)
    draw = np.random.default_rng(5)
    for _ in range(5):
        shuffled = draw.permutation(200)  # the rows of a part need not be in order either
        parts = [
            _select(influence[rows], rows, k)
            for rows in np.split(shuffled, np.sort(draw.choice(200, 6, replace=False)))
        ]
        while len(parts) > 1:
            a, b = (parts.pop(draw.integers(len(parts))) for _ in range(2))
            parts.append(merge_top(a, b))
        assert top_table(parts[0]).to_pylist() == expected


def test_queries_are_looked_at_in_portions_with_the_same_result(
    influence: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for portion in (1, 450, 600):  # of one, two and three of the four queries
        monkeypatch.setattr(top, "_PORTION", portion)
        assert top_table(_select(influence, np.arange(200), 7)).to_pylist() == _by_hand(influence, 7)


def test_the_state_is_bounded_and_keeps_only_the_texts_it_needs(influence: np.ndarray) -> None:
    whole = _select(influence, np.arange(200), 3)
    assert whole.rows.shape == (4, 2, 3)
    merged = merge_top(_select(influence[:100], np.arange(100), 3), _select(influence[100:], np.arange(100, 200), 3))
    for state in (whole, merged):
        assert state.texts["row"].to_pylist() == sorted(set(state.rows.ravel().tolist()))
    # a slice of a big table must not drag the whole of it into the object store
    assert len(pickle.dumps(merged)) < 5000


def test_zero_is_neither_helpful_nor_harmful_and_infinity_is_no_score() -> None:
    values = np.array([[0.0], [-0.0], [np.inf], [-np.inf], [np.nan], [1e-38]], np.float32)
    table = top_table(_select(values, np.arange(6), 5))
    assert table["row"].to_pylist() == [5]
    assert table["direction"].to_pylist() == ["harmful"]


def test_a_part_in_which_no_row_has_a_score_changes_nothing(influence: np.ndarray) -> None:
    whole = _select(influence, np.arange(200), 5)
    none = _select(np.full((3, 4), np.nan, np.float32), np.arange(200, 203), 5)
    none_texts = pa.table({"row": [200, 201, 202], "id": ["a", "b", "c"], "preview": [None] * 3})
    unread = select_top(np.full((3, 4), np.nan, np.float32), np.arange(200, 203), none_texts, 5)
    empty = _select(np.empty((0, 4), np.float32), np.arange(0), 5)
    for other in (none, unread, empty):
        for merged in (merge_top(whole, other), merge_top(other, whole)):
            assert top_table(merged).equals(top_table(whole))
    assert top_table(merge_top(none, empty)).num_rows == 0


def test_row_numbers_beyond_32_bits_are_kept() -> None:
    rows = np.array([2**40 + 1, 2**40], np.int64)
    table = top_table(_select(np.ones((2, 1), np.float32), rows, 2))
    assert table["row"].to_pylist() == [2**40, 2**40 + 1]


def test_shapes_that_do_not_fit_are_refused(influence: np.ndarray) -> None:
    rows = np.arange(200)
    with pytest.raises(ValueError, match="want"):
        _select(influence[:5], rows, 3)
    with pytest.raises(ValueError, match="want"):
        _select(influence, rows, 0)
    with pytest.raises(ValueError, match="texts lack"):
        select_top(influence, rows, _texts(rows[:50]), 3)
    with pytest.raises(ValueError, match="4 and 3 queries"):
        merge_top(_select(influence, rows, 3), _select(influence[:, :3], rows, 3))
