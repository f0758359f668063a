from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.labels import check_labels, parse_label
from tests import tiny

NAMES = {"no": 0, "maybe": 1, "yes": 2}


@pytest.mark.parametrize(("value", "label"), [(0, 0), (2, 2), ("yes", 2), ("1", 1), (1.0, 1), (True, 1), (" 2 ", 2)])
def test_a_label_is_a_number_a_name_or_digits(value, label):
    parsed = parse_label(value, 3, NAMES)
    assert (parsed, type(parsed)) == (label, int)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, r"label 3 is not in 0..2"),
        (-1, r"label -1 says that there is none"),
        ("-1", r"label '-1' says that there is none"),
        (-100.0, r"label -100.0 says that there is none"),
        (-2, r"label -2 is not in 0..2"),
        ("-2", r"label '-2' is none of the model's, which are no, maybe, yes"),
        ("Yes", r"label 'Yes' is none of the model's, which are no, maybe, yes"),
        (1.5, r"label 1.5 is no class number or name"),
        (float("nan"), "label nan is no class number or name"),
        ([1], r"label \[1\] is no class number or name"),
    ],
)
def test_what_is_no_label_is_refused(value, says):
    with pytest.raises(ValueError, match=says):
        parse_label(value, 3, NAMES)


def test_one_label_is_a_number_of_any_size():
    assert parse_label("-3.5", 1, None) == -3.5
    assert isinstance(parse_label(2, 1, None), float)
    for value in ("high", None, float("inf"), 10**400):
        with pytest.raises(ValueError, match=r"is not (a number|finite)"):
            parse_label(value, 1, None)


def check(path, labels: int = 3) -> None:
    corpus = plan_corpus(RowsConfig(path=path), tiny.task("sequence-classification"), "train")
    check_labels(corpus, labels, NAMES, "train")


def test_a_parquet_label_far_down_is_found_by_its_statistics(tmp_path):
    path = str(tmp_path / "a.parquet")
    table = pa.table({"text": ["a"] * 5000, "label": [*([0, 1, None, 2] * 1249), 0, 0, 7, 0]})
    pq.write_table(table, path, row_group_size=500)
    with pytest.raises(RequestError, match=r"train.columns.label: label: in .*a.parquet: label 7 is not in 0..2"):
        check(path)
    check(path, 8)


def test_labels_of_other_files_are_looked_at(write, tmp_path):
    for i in range(3):
        write(f"{i}.jsonl", [{"text": "a", "label": label} for label in (0, "yes", None, 1)])
    check(f"{tmp_path}/*")
    write("2.jsonl", [{"text": "a", "label": label} for label in (0, 1, "often")])
    with pytest.raises(RequestError, match=r"label: in row 2.jsonl#2: label 'often' is none of the model's"):
        check(f"{tmp_path}/*")
    write("2.csv", [{"text": "a", "label": "3"}])
    with pytest.raises(RequestError, match=r"label: in row 2.csv#0: label '3' is not in 0..2"):
        check(f"{tmp_path}/*.csv")


def test_labels_without_statistics_are_looked_at(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 3]}), path, write_statistics=False)
    with pytest.raises(RequestError, match=r"label: in row a.parquet#1: label 3 is not in 0..2"):
        check(path)
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [0.0, float("nan"), 2.0]}), path, write_statistics=False)
    check(path)


def test_labels_that_say_there_is_none_are_the_rows_own_affair(write, tmp_path):
    rows = [{"text": "a", "label": label} for label in (0, -1, 2, -100)]
    check(write("a.jsonl", rows))
    check(write("a.csv", rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    check(str(tmp_path / "a.parquet"))
    for name in ("b.jsonl", "b.parquet"):
        with pytest.raises(RequestError, match=r"label -2 is not in 0..2"):
            check(write(name, [*rows[:2], {"text": "a", "label": -2}]))


def test_a_regression_and_a_name_may_be_any_number():
    assert parse_label(-1, 1, None) == -1.0
    assert parse_label("-1", 2, {"-1": 0, "1": 1}) == 0


def test_a_corpus_without_labels_passes(write):
    check_labels(
        plan_corpus(RowsConfig(path=write("a.jsonl", [{"text": "a"}])), tiny.task("causal-lm"), "train"), 0, {}, "train"
    )
