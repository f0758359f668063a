"""The run that users are given: what it holds, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datainf_ray.common.storage import Options
from datainf_ray.runs import results
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.plots import Plots

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from datainf_ray.curate.result import Curated
    from datainf_ray.curate.shown import ShownRow
    from datainf_ray.evaluation.result import Evaluation
    from datainf_ray.runs.cut import Cut
    from datainf_ray.runs.report.cell import Gallery
    from datainf_ray.runs.token_rows import TokenRows


def open_run(url: str, storage_options: Options | None = None) -> Run:
    """The run whose directory is at `url`, finished or still running; `RequestError` if there is none.

    `storage_options` as in the configuration: by protocol, what fsspec opens it with.
    """
    return Run(RunDirectory(url, "run", storage_options))


class Run(results.Run):
    """The results of one run, as in `results.Run`, and what follows from them."""

    @property
    def plot(self) -> Plots:
        """Figures for a notebook: `distribution`, `cumulative`, `layers`, `timeline` and `by`; see `runs.plots.Plots`.

        >>> run.plot.distribution("eval.jsonl#0")
        """
        return Plots(self)

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

    def cut(self, *others: str | results.Run, seed: int = 0) -> Cut:
        """How much of all influence the first rows carry, and how many stand out of chance: see `runs.cut`.

        >>> run.cut().of("harmful").stand_out
        13
        """
        from datainf_ray.curate.act import cut

        return cut(self, *others, seed=seed)

    def by(self, column: str, query: int | str | None = None, **overrides: Any) -> pa.Table:
        """Influence summed and averaged by a column of the corpus, or by "file": see `curate.by.by`.

        >>> run.by("source").to_pandas()
        """
        from datainf_ray.curate.by import by

        return by(self, column, query, **overrides)

    def row(self, row: int | str, neighbours: bool = True, **overrides: Any) -> ShownRow:
        """One row, whole, by its number or id: see `curate.shown.show`.

        >>> print(run.row(17))
        """
        from datainf_ray.curate.shown import show

        return show(self, row, neighbours, **overrides)

    def top(
        self, query: int | str = 0, k: int = 10, harmful: bool = False, text: str | None = None, **overrides: Any
    ) -> pa.Table:
        """The `k` most helpful rows for a query, or the most harmful: as `results.Run.top`.

        `query` may be "all": all queries together, see `runs.together.top_of_all`. With `text="full"` there is a column
        `text`, the rows' whole texts from the corpus; `overrides` replace keys of the run's configuration, such as
        train.path where the corpus was moved. Raises `RequestError` where that is not what it was.
        """
        from datainf_ray.curate.top import top

        return top(self, query, k, harmful, text, **overrides)

    def gallery(self, query: int | str = 0, k: int = 10) -> Gallery:
        """A query with its `k` most helpful and most harmful rows, each beside its picture, for a notebook's cell.

        The run keeps pictures of the first rows of each query (see `pictures`); rows without one are shown as text.

        >>> run.gallery("a dog", k=20)
        """
        from datainf_ray.runs.report.cell import gallery

        return gallery(self, self.record, self.query_number(query), k)

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
