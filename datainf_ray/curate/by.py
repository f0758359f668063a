"""Influence summed and averaged by a column of the corpus: file, source, label, annotator, whatever rows say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.common.storage import failing, open_store, reason
from datainf_ray.common.words import counted
from datainf_ray.config import options_among
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.columns import require_column
from datainf_ray.corpus.lookup import has_column
from datainf_ray.corpus.rows import called
from datainf_ray.curate.source import source_of, values_of
from datainf_ray.runs.by import BY_FILE, BY_ROWS_FILE, INTERVAL, Groups, by_rows_schema, by_schema
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.schemas import table_bytes
from datainf_ray.runs.scores import Scores

FILE = "file"  #: the column that every corpus has: the file that a row is in
MOST_VALUES = 100_000  #: of a column
_MOST_SUMS = 1 << 24  # values times queries: 0.5 GB in all
_LONGEST = 1000  # characters of a value: what is longer is a text, and no group


def by(run: str | Run, column: str, query: int | str | None = None, **overrides: Any) -> pa.Table:
    """A finished run's influence by a column of its corpus, with the columns of `runs.by.by_schema`.

    `column` is a column of the corpus, one within it (`meta.source`), or "file". `query` is a query's number or id, or
    "all" for all together; None: each, and all together first. `overrides` replace keys of the run's configuration,
    such as train.path where the corpus was moved. Raises `RequestError` where the column is not there, holds lists or
    texts, or has too many values; where the run stored no scores; and where the corpus is not what it was.

        >>> run.by("source").to_pandas()
    """
    with failing():
        opened = run if isinstance(run, Run) else open_run(run, options_among(overrides))
        number = None if query is None or query == "all" else opened.query_number(query)
        scores = Scores([opened], "harmful")
        corpus = source_of(opened, **overrides).corpus("train")
        names, groups, _ = _grouped(scores, corpus, column, np.empty(0, np.int64))
        table = _table(scores, column, names, groups)
    if query is None:
        return table
    if query == "all" and len(scores.queries) > 1:
        return table.filter(pc.is_null(table["query"]))
    return table if number is None else table.filter(pc.equal(table["query"], number))


def require_by(column: str, corpus: Corpus, key: str) -> None:
    """Raises `RequestError` where rows of the corpus have no such column."""
    files = [file for file in corpus.files if file.rows]
    if column != FILE or all(has_column(FILE, file) for file in files):
        require_column(column, files, key)


def write_by(run: Run, say: Callable[[str], None]) -> None:
    """by.parquet in the directory of a run of which the configuration has `results.by`, where it is not there yet; and
    by_rows.parquet, for the rows that the run lists.

    A run whose rows cannot be read again, or that cannot be grouped, is done all the same: `say` receives a line.
    """
    column = run.config["results"].get("by")
    if column is None or run.directory.exists(BY_FILE):
        return
    try:
        with failing():
            scores, corpus = Scores([run], "harmful"), source_of(run).corpus("train")
            listed = np.unique(run.tops()["row"].to_numpy())
            names, groups, chosen = _grouped(scores, corpus, column, listed)
            each = pa.table([pa.array(listed), pa.array(chosen, pa.string())], schema=by_rows_schema())
            run.directory.write(BY_ROWS_FILE, table_bytes(each))
            run.directory.write(BY_FILE, table_bytes(_table(scores, column, names, groups)))
    except (RequestError, RunFailedError) as error:
        say(f"{BY_FILE} is left out: {error}")


def save(table: pa.Table, url: str, overrides: dict[str, Any]) -> None:
    """Write the table to a new Parquet file. Raises `RequestError` where that cannot be."""
    fs, place = open_store(url, "--to", options_among(overrides))
    if not place.endswith(".parquet"):
        raise RequestError("--to", url, "is called as no Parquet file is", "end it in .parquet")
    with failing():
        if fs.exists(place):
            raise RequestError("--to", url, "is there already", "remove it, or name a new file")
    try:
        fs.pipe_file(place, table_bytes(table))
    except Exception as error:  # every store raises errors of its own
        raise RequestError("--to", url, f"cannot be written: {reason(error)}") from None


def _grouped(
    scores: Scores, corpus: Corpus, column: str, rows: np.ndarray
) -> tuple[list[str | None], Groups, list[str | None]]:
    """The values of the column, in the order in which they come, what is summed for each, and those of some `rows`."""
    several = len(scores.queries) > 1
    numbers: dict[str | None, int] = {}
    groups = Groups(len(scores.queries) + several)
    values, chosen = _values(corpus, column), [np.empty(0, np.int64)]
    for portion in scores.portions():
        some = itertools.islice(values, len(portion))
        own = np.fromiter((numbers.setdefault(value, len(numbers)) for value in some), np.int64, len(portion))
        _require_few(len(numbers), groups.sums.shape[1], column)
        chosen.append(own[rows[(rows >= portion.first) & (rows < portion.first + len(portion))] - portion.first])
        influence = portion.influence.astype(np.float64)
        if several:
            influence = np.concatenate([scores.blame(influence).mean(axis=1, keepdims=True), influence], axis=1)
        groups.add(own, influence)
    names = list(numbers)
    return names, groups, [names[number] for number in np.concatenate(chosen)]


def _values(corpus: Corpus, column: str) -> Iterator[str | None]:
    """Each row's value as text. Raises `RequestError` where one is none that rows are grouped by."""
    require_by(column, corpus, "--column")
    if column == FILE and not all(has_column(FILE, file) for file in corpus.files if file.rows):
        for file in corpus.files:
            yield from itertools.repeat(file.name, file.rows)
        return
    for row, text in values_of(corpus, column, "--column"):
        value = row.fields.get("--column")
        if isinstance(value, list | dict):
            problem = f"row {row.row} has {called(value)} there"
            raise RequestError("--column", column, problem, "name a column of texts, numbers or booleans")
        if text is not None and len(text) > _LONGEST:
            problem = f"row {row.row} has a text of {counted(len(text), 'character')} there, by which none is grouped"
            raise RequestError("--column", column, problem, "name a column of fewer and shorter values")
        yield text


def _require_few(values: int, queries: int, column: str) -> None:
    most = min(MOST_VALUES, _MOST_SUMS // queries)
    if values > most:
        raise RequestError(
            "--column", column, f"has more than {most:,} values", "name a column that groups rows; --annotate has each"
        )


def _table(scores: Scores, column: str, names: list[str | None], groups: Groups) -> pa.Table:
    several, errors = len(scores.queries) > 1, groups.errors()
    queries = [(None, None)] * several + [(one.number, one.id) for one in scores.queries]
    count, rows, scored = len(names), groups.rows[: len(names)], groups.scored[: len(names)]
    values = np.array(names, dtype=object)
    as_text = np.array(["" if name is None else name for name in names], dtype=object)
    alphabet = np.argsort(np.argsort(as_text, kind="stable"), kind="stable")
    parts = [by_schema().empty_table()]
    for at, (number, name) in enumerate(queries):
        sums, error = groups.sums[:count, at], errors[:count, at]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(scored > 0, sums / scored, np.nan)
        sides = np.where(sums > 0, sums[sums > 0].sum(), -sums[sums < 0].sum())
        order = np.lexsort((alphabet, -sums))
        columns = [
            pa.array([column] * count), pa.array([number] * count, pa.int32()), pa.array([name] * count, pa.string()),
            pa.array(values[order], pa.string()), rows[order], scored[order], sums[order],
            *(pa.array(one[order], mask=np.isnan(one[order]))
              for one in (mean, mean - INTERVAL * error, mean + INTERVAL * error)),
            np.divide(np.abs(sums), sides, out=np.zeros(count), where=sides > 0)[order],
        ]  # fmt: skip
        parts.append(pa.table(columns, schema=by_schema()))
    return pa.concat_tables(parts)
