"""The run that users are given: what it holds, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datainf_ray.common.storage import Options
from datainf_ray.runs import results
from datainf_ray.runs.directory import RunDirectory

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from datainf_ray.curate.result import Curated
    from datainf_ray.evaluation.result import Evaluation
    from datainf_ray.runs.token_rows import TokenRows


def open_run(url: str, storage_options: Options | None = None) -> Run:
    """The run whose directory is at `url`, finished or still running; `RequestError` if there is none.

    `storage_options` as in the configuration: by protocol, what fsspec opens it with.
    """
    return Run(RunDirectory(url, "run", storage_options))


class Run(results.Run):
    """The results of one run, as in `results.Run`, and what follows from them."""

    def evaluate(self, *others: str | results.Run, **asked: Any) -> Evaluation:
        """How well the scores find the rows that a column of the corpus marks: see `datainf_ray.evaluate`."""
        from datainf_ray.evaluation.compare import evaluate

        return evaluate(self, *others, **asked)

    def curate(self, *others: str | results.Run, to: str | None = None, **asked: Any) -> Curated:
        """Write the corpus again without its worst rows, or selected, weighted, with scores: see `curate.act.curate`.

        >>> run.curate(to="clean.jsonl", drop="1%", because="helpful", rejected="gone.jsonl")
        """
        from datainf_ray.curate.act import curate

        return curate(self, *others, to=to, **asked)

    def tokens(self, query: int | str = 0, row: int | str | None = None) -> TokenRows:
        """What each token of a row contributes to its influence on a query, shaded in a notebook's cell.

        `row` is a row's number or id, of those that the run has looked at: the first 20 of either direction in
        top.parquet, fewer where there are very many queries. None: the rows of the query itself, whose shares are those
        of v·r. Raises `RequestError` where the run was not asked for `results.tokens`, or did not look at the row.

        >>> run.tokens("q-1", run.top("q-1", harmful=True)["row"][0].as_py())
        """
        from datainf_ray.runs.token_rows import token_rows

        return token_rows(self, self.query_number(query), row)

    def selected(self, *others: str | results.Run, **asked: Any) -> pa.Table:
        """The rows that `curate` would let stay, or with `gone=True` those that would go: see `curate.join.selected`.

        >>> run.selected(drop=100, because="harmful", gone=True).to_pandas()
        """
        from datainf_ray.curate.join import selected

        return selected(self, *others, **asked)

    def join(self, *others: str | results.Run, **options: Any) -> Iterator[dict[str, Any]]:
        """Every row of the corpus with all its columns and its scores, one after the other: see `curate.join.join`."""
        from datainf_ray.curate.join import join

        return join(self, *others, **options)

    def to_dataset(self, **options: Any) -> datasets.IterableDataset:
        """The rows of `join` as an `IterableDataset` of the library `datasets`."""
        from datainf_ray.curate.join import to_dataset

        return to_dataset(self, **options)
