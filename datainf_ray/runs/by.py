"""Influence by a column of the corpus: its table, and the sums that it is made of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import DamagedError, one_line
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import conform, read_parquet

BY_FILE = "by.parquet"  #: in the run directory, where the configuration has `results.by`
BY_ROWS_FILE = "by_rows.parquet"  #: beside it: the value of each row of top.parquet
INTERVAL = 1.959963984540054  #: standard errors on either side of a mean, of an interval of 95 % (normal)


def by_schema() -> pa.Schema:
    """The columns of influence by a column: for each query the values, the most harmful sum first.

    `query` is null, and `id` too, in the rows of all queries together, of which the influence is the mean over them,
    each query's divided by its root mean square; of one query there are none. `value` is as a person writes it; null is
    a value of its own, which rows have that could not be read, too. `rows` have the value, `scored` of them a score.
    `sum` and `mean` are over these; `low` and `high` are the mean's interval of 95 % by the normal distribution, ± 1.96
    standard errors: null where fewer than two rows are scored. `share` is that of all harmful influence where the sum
    is positive, and of all helpful influence where it is negative, summed over the values.
    """
    return pa.schema(
        [
            pa.field("column", pa.string(), nullable=False),
            pa.field("query", pa.int32()),
            pa.field("id", pa.string()),
            pa.field("value", pa.string()),
            pa.field("rows", pa.int64(), nullable=False),
            pa.field("scored", pa.int64(), nullable=False),
            pa.field("sum", pa.float64(), nullable=False),
            pa.field("mean", pa.float64()),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
            pa.field("share", pa.float64(), nullable=False),
        ]
    )


def by_rows_schema() -> pa.Schema:
    """The columns of by_rows.parquet: a row's number, and its value in the column, null as in by.parquet."""
    return pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("value", pa.string())])


def stored_by(run: Run) -> pa.Table | None:
    """The by.parquet of a run that is done; None where it has none. Raises `DamagedError` where it is none of ours."""
    return _stored(run, BY_FILE, by_schema())


def stored_values(run: Run) -> dict[int, str | None]:
    """The value of each row that a run lists, from its by_rows.parquet; none where it has none. Raises likewise."""
    table = _stored(run, BY_ROWS_FILE, by_rows_schema())
    return {} if table is None else dict(zip(table["row"].to_pylist(), table["value"].to_pylist(), strict=True))


def _stored(run: Run, name: str, schema: pa.Schema) -> pa.Table | None:
    if not run.directory.exists(name):
        return None
    try:
        table = read_parquet(run.directory.read(name))
        conform(table, schema)
    except ValueError as error:
        raise DamagedError(run.directory.path(name), one_line(error)) from None
    return table


class Groups:
    """Counts, sums and squares of numbers (rows × columns) by group, as more groups come."""

    def __init__(self, columns: int) -> None:
        self.rows, self.scored = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.sums, self._means, self._squares = (np.zeros((0, columns)) for _ in range(3))

    def add(self, groups: np.ndarray, values: np.ndarray) -> None:
        """More rows: the groups that they are in (int64), and their numbers; a row of NaN has no score.

        The groups' means and squared deviations are merged with those that are known (Chan, Golub and LeVeque 1979),
        which loses no digits where the mean is far from zero.
        """
        self._grow(int(groups.max(initial=-1)) + 1)
        np.add.at(self.rows, groups, 1)
        there = ~np.isnan(values[:, 0])
        groups, values = groups[there], values[there].astype(np.float64)
        if not len(groups):
            return
        order = np.argsort(groups, kind="stable")
        groups, values = groups[order], values[order]
        which, first, count = np.unique(groups, return_index=True, return_counts=True)
        sums = np.add.reduceat(values, first, axis=0)
        means = sums / count[:, None]
        squares = np.add.reduceat((values - np.repeat(means, count, axis=0)) ** 2, first, axis=0)
        known, all_of = self.scored[which][:, None], (self.scored[which] + count)[:, None]
        apart = means - self._means[which]
        self._squares[which] += squares + apart**2 * known * count[:, None] / all_of
        self._means[which] += apart * count[:, None] / all_of
        self.sums[which] += sums
        self.scored[which] += count

    def errors(self) -> np.ndarray:
        """The standard errors of the means (groups × columns); NaN of fewer than two rows."""
        count = self.scored[:, None].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(count > 1, np.sqrt(self._squares / (count - 1) / count), np.nan)

    def _grow(self, groups: int) -> None:
        more = max(groups, 2 * len(self.rows)) - len(self.rows)
        if groups <= len(self.rows):
            return
        self.rows, self.scored = (np.pad(one, (0, more)) for one in (self.rows, self.scored))
        self.sums, self._means, self._squares = (
            np.pad(one, ((0, more), (0, 0))) for one in (self.sums, self._means, self._squares)
        )
