"""Which rows are to be found: a column of the corpora that a run was made of, which are read again for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted, printable
from datainf_ray.corpus.lookup import has_column
from datainf_ray.corpus.rows import Row
from datainf_ray.curate.source import Source, values_of
from datainf_ray.request.groups import query_groups
from datainf_ray.runs.schemas import OK

_TRUTH, _SAME = "--truth", "--same"
_YES, _NO = ("true", "1"), ("false", "0")
_LISTED = 5  # values of a column that a message names


@dataclass(frozen=True)
class Marked:
    """Rows that are to be found whatever the query."""

    column: str  #: as it was asked for: COLUMN or COLUMN=VALUE
    rows: np.ndarray  #: n booleans

    def of(self, query: int) -> np.ndarray:
        """Which rows are to be found by a query, n booleans."""
        return self.rows


@dataclass(frozen=True)
class SameClass:
    """For each query the rows of its own class are to be found."""

    column: str
    rows: np.ndarray  #: the class of each row (n, int64); −1 where it has none
    queries: np.ndarray  #: the class of each query (int64); −1 where no row has it, or all have

    def of(self, query: int) -> np.ndarray:
        """Which rows are to be found by a query, n booleans."""
        return self.rows == self.queries[query]


Truth = Marked | SameClass


def marked(source: Source, asked: str) -> Marked:
    """The truth that a column of the training corpus says: a boolean or 0 and 1, or the rows where COLUMN=VALUE."""
    corpus = source.corpus("train")
    column, sign, wanted = asked.partition("=")
    whole = not sign or all(has_column(asked, file) for file in corpus.files if file.rows)
    column, value = (asked, None) if whole else (column, wanted)
    some: dict[str, None] = {}  # of the column's values
    rows = np.fromiter(
        (
            _is_true(row, found, column) if value is None else found == value
            for row, found in _noted(values_of(corpus, column, _TRUTH), some)
        ),
        bool,
        corpus.rows,
    )
    if rows.all() or not rows.any():
        listed, more = list(some)[:_LISTED], ", …" if len(some) > _LISTED else ""
        problem = f"{'all' if rows.any() else 'none'} of {counted(len(rows), 'row')} "
        problem += "would have to be found" if value is None else f"{'have' if rows.any() else 'has'} that value"
        raise RequestError(_TRUTH, asked, problem, f"its values are {', '.join(listed)}{more}")
    return Marked(asked, rows)


def same_class(source: Source, column: str) -> SameClass:
    """The classes of rows and queries that a column says which both corpora have."""
    numbers: dict[str, int] = {}
    corpus = source.corpus("train")
    found = values_of(corpus, column, _SAME)
    rows = np.fromiter(
        (-1 if value is None else numbers.setdefault(value, len(numbers)) for _, value in found), np.int64, corpus.rows
    )
    corpus = source.corpus("queries")
    groups, names = query_groups(source.config, corpus)
    queries = np.full(int(groups.max()) + 1, -1)
    classes: dict[int, str] = {}
    for group, (row, value) in zip(groups.tolist(), values_of(corpus, column, _SAME), strict=True):
        if value is None:
            continue
        if classes.setdefault(group, value) != value:
            name = printable(row.id if names is None else names[group])
            two = f"{printable(classes[group], 40)} and {printable(value, 40)}"
            remedy = "a query's rows must have one class: set queries.group to null, or to this column"
            raise RequestError(_SAME, column, f"query {name} has rows of {two}", remedy)
        queries[group] = numbers.get(value, -1)
    if np.all(rows == 0):
        raise RequestError(_SAME, column, f"all of {counted(len(rows), 'row')} are of one class")
    if np.all(queries < 0):
        some = ", ".join(list(dict.fromkeys(printable(name, 40) for name in classes.values()))[:_LISTED]) or "null"
        raise RequestError(_SAME, column, "no training row is of a query's class", f"the queries' are {some}")
    return SameClass(column, rows, queries)


def scored_queries(source: Source, truth: Truth) -> np.ndarray:
    """The numbers of the queries that have scores, and rows to be found."""
    status = source.run.queries()["status"].to_pylist()
    fine = np.array([one == OK for one in status])
    if isinstance(truth, SameClass):
        if len(truth.queries) != len(fine):
            there = f"{counted(len(truth.queries), 'query', 'queries')}, and {source.run.url} has {len(fine):,}"
            raise RequestError("queries.path", ", ".join(source.config.queries.paths), f"has {there}")
        fine &= truth.queries >= 0
    if not fine.any():
        raise RequestError("run", source.run.url, "no query has scores and rows that are to be found")
    return np.flatnonzero(fine)


def _noted(values: Iterator[tuple[Row, str | None]], some: dict[str, None]) -> Iterator[tuple[Row, str | None]]:
    """The same, and the first few distinct values are put into `some`, as they are printed."""
    for row, value in values:
        if len(some) <= _LISTED:
            some.setdefault(printable("null" if value is None else value, 40))
        yield row, value


def _is_true(row: Row, value: str | None, column: str) -> bool:
    text = "" if value is None else value.strip().lower()
    if text in _YES + _NO:
        return text in _YES
    if value is None and row.problem not in (None, f"{_TRUTH} is null", f"row has no column {column!r}"):
        return False  # of a row that cannot be read nothing is known
    said = "null" if value is None else f"{printable(value, 60)!r}"
    remedy = f"name the value of the rows that are to be found: {_TRUTH} {printable(column)}=VALUE"
    raise RequestError(_TRUTH, column, f"row {printable(row.id)} has {said}, no boolean, 0 or 1", remedy)
