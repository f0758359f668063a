"""The corpus' rows with their scores, and which of them stay, in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import failing
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.records import TEXT_FORMATS, Parsed, TextSource
from datainf_ray.corpus.tables import TableSource
from datainf_ray.curate.act import judge
from datainf_ray.curate.extra import Extra
from datainf_ray.curate.rules import STAYS, rule_of
from datainf_ray.curate.told import REJECTED, annotated, rejected_tables
from datainf_ray.runs.results import Run

if TYPE_CHECKING:
    import datasets

SELECTED = pa.schema([("row", pa.int64()), ("id", pa.string()), ("score", pa.float64())])


def selected(run: Run, *others: str | Run, gone: bool = False, because: str | None = None, **asked: Any) -> pa.Table:
    """The rows that `curate` would let stay: row, id, and score, what the row is blamed with (null: it has no score).

    With `gone` those that would go, as `curate` writes them: reason, row, id, query, rank, influence, share. What is
    asked is as in `curate`. Raises `RequestError` as that does.
    """
    overrides = asked.pop("overrides", None) or {}
    with failing():
        judged = judge([run, *others], rule_of(because, **asked), overrides)
        scores, decided = judged.scores, judged.decided
        tables: list[pa.Table] = []
        if gone:
            tables = [table.filter(table["row"].is_valid()) for table in rejected_tables(judged.rule, scores, decided)]
            return pa.concat_tables([REJECTED.empty_table(), *tables])
        for portion in scores.portions(["id"]):
            last = portion.first + len(portion)
            score = decided.score.read(portion.first, last)
            columns = [np.arange(portion.first, last), portion.tables[0]["id"], pa.array(score, mask=np.isnan(score))]
            stays = pa.array(decided.fate[portion.first : last] == STAYS)
            tables.append(pa.table(columns, schema=SELECTED).filter(stays))
        return pa.concat_tables(tables)


def join(run: Run, *others: str | Run, across: str = "mean", **overrides: Any) -> Iterator[dict[str, Any]]:
    """Every row of the corpus, in order, with all its columns and its scores: row, id, status, loss, influence (across
    the queries, in root mean squares; positive: harmful), influence_mean, influence_min and influence_max.

    Where the corpus has such a column the score's name begins `datainf_`. A row that cannot be read has only these.
    `overrides` replace keys of the run's configuration. Memory does not grow with the rows.

        >>> worst = max(run.join(), key=lambda row: row["influence"] or 0)
    """
    judged = judge([run, *others], rule_of(None, annotate=True, across=across), overrides)
    extra = annotated(judged.scores, judged.decided).called(judged.corpus.files)
    return _joined(judged.corpus, extra)


def _joined(corpus: Corpus, extra: Extra) -> Iterator[dict[str, Any]]:
    with failing():
        for parsed, scores in zip(_rows(corpus), extra.rows(), strict=True):
            yield {**parsed.values, **scores}


def to_dataset(run: Run, **options: Any) -> datasets.IterableDataset:
    """The rows of `join` as an `IterableDataset` of the library `datasets`. Raises `RequestError` without it."""
    try:
        import datasets
    except ImportError:
        raise RequestError(
            "to_dataset", None, "needs a package that is not installed", "pip install datasets"
        ) from None
    rows = join(run, **options)  # here, so that what is wrong is said now
    del rows
    return datasets.IterableDataset.from_generator(join, gen_kwargs={"run": run, **options})


def _rows(corpus: Corpus) -> Iterator[Parsed]:
    """The rows of all files with all their columns."""
    for file in corpus.files:
        if not file.rows:
            continue
        if file.format in TEXT_FORMATS:
            source: TextSource | TableSource = TextSource(file)
        else:
            source = TableSource(file, [(name,) for name in file.columns])
        try:
            yield from source.read(0, file.rows)
        finally:
            source.close()
