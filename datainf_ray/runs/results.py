"""A run, read back: `open_run` and `Run`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.common.storage import Options, failing
from datainf_ray.common.words import close, printable
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.events import read_events
from datainf_ray.runs.files import part_files, rows_of, table_of, telling_damage
from datainf_ray.runs.lease import Pulse, driver_of, progress_of, request_stop
from datainf_ray.runs.parts import CHUNKS, names_of
from datainf_ray.runs.pictures import PICTURES
from datainf_ray.runs.record import RUN_FILE, RunRecord, read_record, tell_unsolved
from datainf_ray.runs.report.cell import in_a_cell
from datainf_ray.runs.schemas import OK, examples_schema, matrix
from datainf_ray.runs.texts import TEXTS
from datainf_ray.runs.top import DIRECTIONS, merge_top, select_top, top_table
from datainf_ray.watch.progress import Progress
from datainf_ray.watch.shown import Shown
from datainf_ray.watch.watching import watching

_LOOK = 1.0  # seconds between looks at a run that is waited for


def open_run(url: str, storage_options: Options | None = None) -> Run:
    """The run whose directory is at `url`, finished or still running; `RequestError` if there is none.

    `storage_options` as in the configuration: by protocol, what fsspec opens it with.
    """
    return Run(RunDirectory(url, "run", storage_options))


class Driver(Protocol):
    """Does a run in the background of this session."""

    config: dict[str, Any]  # the run's, as run.json will have it

    def over(self) -> bool:
        """Whether it has ended."""

    def error(self) -> BaseException | None:
        """The error that it ended with, if there was one."""


class Run:
    """The results of one run.

    Until the run is done, each call reads run.json once, and what it returns is of that moment.
    Tables are pyarrow tables. All but `examples` and `events` need a finished run: until then they raise
    `RequestError`, as does a query that does not exist or a result that the run did not store.
    """

    def __init__(self, directory: RunDirectory, driver: Driver | None = None) -> None:
        self.directory = directory
        self._driver = driver  # where the run was begun from here; it may not have written anything yet
        self._earlier: str | None = None  # when the attempt was begun that an earlier driver left here
        if driver is not None and directory.exists("run.json"):
            self._earlier = read_record(directory).created
        self._record = self._load()

    def _load(self) -> RunRecord:
        driver = self._driver
        if driver is None:
            return read_record(self.directory)
        begun = self.directory.exists(RUN_FILE)
        if driver.over():
            error = driver.error()
            if error is not None and not begun:
                raise error
            return read_record(self.directory)
        record = read_record(self.directory) if begun else RunRecord(state="starting", config=driver.config)
        return record.model_copy(update={"state": "starting"}) if record.created == self._earlier else record

    @property
    def url(self) -> str:
        """The run directory's URL, or its absolute path."""
        return self.directory.url

    @property
    def record(self) -> RunRecord:
        """The content of run.json; read again, each time that this is asked for, as long as the run is not done."""
        if self._record.state != "done":
            self._record = self._load()
        return self._record

    @property
    def state(self) -> str:
        """ "starting", "running", "done", "failed" or "interrupted"."""
        return self.record.state

    def progress(self) -> Progress:
        """How far the run is, as its driver reported within the last seconds, wherever the driver is."""
        return self._progress(self.state)

    def _progress(self, state: str) -> Progress:
        there = driver_of(self.directory) if state == "running" else None
        return progress_of(there) or Progress(state)

    def wait(self, timeout: float | None = None, progress: bool | str = True) -> Run:
        """Wait until the run is done, wherever its driver is, and return it. `progress` is shown as by `attribute`.

        Raises `RunFailedError` where the run failed or was interrupted, or where its driver is gone; what an
        `attribute(..., block=False)` raised; `TimeoutError` after `timeout` seconds. An interrupt ends the wait and
        not the run; `stop` ends the run.
        """
        began, pulse, late = time.monotonic(), Pulse(self.directory), False
        with failing(f"{self.url}: cannot be read: "), watching(progress) as watcher:
            shown = Shown(watcher, self._finished)
            while self._at_work(pulse, there := driver_of(self.directory)):
                state = self.state
                if state == "running" and there:
                    shown.show(progress_of(there) or Progress(state))
                late = timeout is not None and time.monotonic() - began > timeout
                if late:
                    break
                time.sleep(_LOOK)
            state = self.state
            shown.end()
        if late:
            raise TimeoutError(f"{self.url}: {self._progress(state)}, after {timeout:g} s")
        if self._driver and (error := self._driver.error()):
            raise error
        if state == "running":  # a driver that ends by itself says so first
            raise RunFailedError(f"{self.url}: its driver is gone; run it again to go on")
        if state != "done":
            raise RunFailedError(f"{self.url}: {state}: {self._record.reason}; run it again to go on")
        return self

    def _at_work(self, pulse: Pulse, there: dict[str, Any] | None) -> bool:
        """Whether a driver is at work, or may be: one that has left its file `there`, or that was begun from here."""
        return pulse.alive(there) is not False or (self._driver is not None and not self._driver.over())

    def _finished(self, sweep: str) -> Progress | None:
        """What a sweep took, as run.json had it when it was last read."""
        took = next((r for r in reversed(self._record.sweeps) if r.name == sweep), None)
        if took is None:
            return None
        return Progress("running", sweep, took.examples, took.examples, took.tokens, took.seconds, took.workers)

    def stop(self) -> None:
        """Ask the run, wherever its driver is, to end within seconds. The same request continues it.

        Raises `RequestError` if no driver is at work on it.
        """
        if not driver_of(self.directory):
            raise RequestError("run", self.url, f"is {self.state!r}, and nobody is at work on it")
        request_stop(self.directory)

    def events(self) -> pa.Table:
        """Who did what and when, so far: a row per event, with the columns of `runs.events.SCHEMA`."""
        return read_events(self.directory)

    @property
    def config(self) -> dict[str, Any]:
        """The run's whole configuration, as plain values, as run.json had it when it was last read."""
        return self._record.config

    @property
    def has_scores(self) -> bool:
        """Whether every row's influence was stored (`results.scores`)."""
        return bool(self.config["results"]["scores"])

    @property
    def top_k(self) -> int:
        """How many rows per query and direction were listed (`results.top_k`)."""
        return self.config["results"]["top_k"]

    def summary(self) -> dict[str, Any]:
        """What was asked, what came out and what it cost, as plain values.

        `status` counts the rows by status and `rows_cut` those with more tokens than max_length, `seconds` is wall
        time, and each of `sweeps` has name, source, examples, tokens, seconds and workers. `sizes` says how the work
        was cut and why, `curvature` how far its error goes and whether it was `sampled`, so that all influences rest on
        a part of the corpus, `unsolved` how far its inverse is from the exact one, if it is not near, `left_out` names
        the blocks whose gradient is rounding, `index` where the gradients are for later queries, `answers` from which
        run's index this one was computed, and `combined` of which runs it is the weighted sum. Each is None where there
        is none, or the run was made before runs said so.
        """
        return self._summary(self.record)

    def _summary(self, record: RunRecord) -> dict[str, Any]:
        method, counts = record.config["method"], record.counts
        curvature, sample = record.curvature, method.get("curvature_rows")
        if curvature is not None:
            curvature = {**curvature, "sampled": sample is not None and sample < (counts.rows if counts else 0)}
        plain = record.model_dump(mode="json")
        figures = plain["counts"] or {}
        return {
            "output": self.url,
            "method": method["name"],
            "damping": method["damping"] if record.damped else None,
            **{name: figures.get(name) for name in ("rows", "rows_cut", "tokens", "queries", "blocks", "parameters")},
            "status": counts.status if counts else {},
            **{
                name: plain[name]
                for name in ("state", "reason", "sign", "device", "dtype", "seconds", "sweeps", "sizes")
            },
            "curvature": curvature,
            "unsolved": tell_unsolved(record.curvature or {}, method),
            "left_out": plain["left_out"],
            "index": plain["index"],
            "answers": plain["answers"],
            "combined": plain["combined"],
        }

    def queries(self) -> pa.Table:
        """The columns query, id, rows, tokens, loss, preview, status; one row per query."""
        return self._table("queries.parquet")

    def blocks(self) -> pa.Table:
        """One row per block; the columns are block, kind, shape, size, damping, mean_sqnorm and what the curvature's
        accuracy follows from: smallest_sqnorm, nodes, error_bound; left_out; and residual.
        """
        return self._table("blocks.parquet")

    def examples(self, columns: list[str] | None = None) -> pa.Table:
        """Every row of the corpus, sorted by row, with all columns of examples/ or those named.

        Of a run that is not done, the rows that are committed so far. The table is as large as the corpus has rows: for
        part of it, point DuckDB, Polars or `pyarrow.dataset` at examples/ in the run directory.
        """
        while True:
            done = self.state == "done"
            try:
                return self._examples(columns, done)
            except FileNotFoundError:  # the run became done meanwhile: the chunks' files went, and the parts are there
                if done:
                    raise

    def _schema(self) -> pa.Schema:
        """That of the rows' files."""
        counts = self._record.counts  # a run that has just begun has none
        blocks = (counts.blocks if counts else 1) if self.config["results"]["blocks"] else 0
        selves = bool(self.config["results"].get("self_influence"))
        return examples_schema(counts.queries if counts else 1, self.has_scores, blocks, selves)

    def _examples(self, columns: list[str] | None, done: bool) -> pa.Table:
        schema = self._schema()
        for name in columns or ():
            if name not in schema.names:
                raise RequestError("columns", name, f"is not in {self.url}, which has {', '.join(schema.names)}")
        names = self._part_names(done)
        if not names:
            return schema.empty_table().select(columns or schema.names)
        parts = list(self.parts(names, None if columns is None else sorted({"row", *columns})))
        table = pa.concat_tables(parts)
        if np.any(np.diff(table["row"].to_numpy()) < 0):
            table = table.sort_by("row")
        return table if columns is None else table.select(columns)

    def scores(self) -> pa.Table:
        """The columns row, id, influence: of every row of the corpus on every query, null where it has no score.

        `influence` is a list of one float32 per query, in the order of `queries()`.
        """
        self.require_done()
        if not self.has_scores:
            raise RequestError("run", self.url, "stored no scores (results.scores: false)", "use top()")
        return self.examples(["row", "id", "influence"])

    def top(self, query: int | str = 0, k: int = 10, harmful: bool = False) -> pa.Table:
        """The `k` most helpful rows for a query, or the most harmful; fewer if fewer rows are helpful (harmful).

        `query` is the query's number or its id. The columns are those of top.parquet: query, direction, rank, row, id,
        influence, preview. Beyond the rows that the run listed (`results.top_k`) the scores are searched, which takes a
        pass over examples/; previews of those rows are null. `RequestError` if scores were not stored.
        """
        number = self.query_number(query)
        if k < 1:
            raise RequestError("k", k, "want at least 1")
        direction = DIRECTIONS[int(harmful)]
        listed = self.tops()
        listed = listed.filter(pc.and_(pc.equal(listed["query"], number), pc.equal(listed["direction"], direction)))
        if k <= self.top_k or listed.num_rows < self.top_k:  # all that is asked for is listed, or all that there is
            return listed.sort_by("rank").slice(0, k)
        if not self.has_scores:
            stored = f"stored no scores, only the {self.top_k} most {direction} rows per query"
            raise RequestError("k", k, f"{self.url} {stored}", f"ask for at most {self.top_k}")
        return self._search(number, k, direction, listed)

    def tops(self) -> pa.Table:
        """The whole of top.parquet: all queries, both directions."""
        return self._table("top.parquet")

    def texts(self) -> pa.Table:
        """The full texts of the rows of `tops` and of some rows of each query, with the columns of `texts_schema`.
        It has no rows where the run is of a version that kept no texts.

            >>> texts = run.texts().to_pylist()
            >>> json.loads(texts[0]["text"])
            [{'role': 'prompt', 'text': 'Which one?'}, {'role': 'completion', 'text': 'The first.', 'answer': True}]
        """
        return self._table(TEXTS)

    def pictures(self) -> pa.Table:
        """Small pictures of the first rows of `tops` and of some rows of each query, with the columns of
        `pictures_schema`. It has no rows where the run's rows have no pictures.
        """
        return self._table(PICTURES)

    def part_names(self) -> list[str]:
        """The names of the files that hold the rows, in order: of examples/, or of the chunks that are committed."""
        return self._part_names(self.state == "done")

    def _part_names(self, done: bool) -> list[str]:
        chunks = [] if done else names_of(self.directory, CHUNKS)
        with telling_damage():
            return chunks or part_files(self.directory, self._record)

    def parts(
        self, names: list[str], columns: list[str] | None = None, share: float = 1.0, first: int = 0
    ) -> Iterator[pa.Table]:
        """The rows of some of those files in order and in portions, never all at once.

        With `share` < 1 about that share of every file, in places that are evenly spaced. The `first` rows of every
        file are passed over. Raises `RequestError` where a file of a run that is done is damaged, or gone.
        """
        for name in names:
            with telling_damage():
                yield from rows_of(self.directory, self._record, name, self._schema(), columns, share, first)

    def _search(self, number: int, k: int, direction: str, listed: pa.Table) -> pa.Table:
        """The first `k` places of one query, from the scores."""
        best = None
        for part in self.parts(self.part_names(), ["row", "id", "influence"]):
            values = matrix(part["influence"])[:, [number]]
            top = select_top(values, part["row"].to_numpy(), part.select(["row", "id"]), k)
            best = top if best is None else merge_top(best, top)
        if best is None:
            return listed
        found = top_table(best)
        found = found.filter(pc.equal(found["direction"], direction))
        previews = dict(zip(listed["row"].to_pylist(), listed["preview"].to_pylist(), strict=True))
        return (
            found.set_column(0, found.field("query"), pa.array([number] * len(found), pa.int32()))
            .drop_columns("preview")
            .append_column(listed.field("preview"), pa.array(map(previews.get, found["row"].to_pylist()), pa.string()))
        )

    def query_number(self, query: int | str) -> int:
        """The number of a query that has scores, by its number or id. Raises `RequestError` where there is none."""
        queries = self.queries()
        ids = queries["id"].to_pylist()
        if isinstance(query, str) and query in ids:
            if ids.count(query) > 1:
                numbers = [str(n) for n, name in enumerate(ids) if name == query]
                raise RequestError("query", query, "is the id of several queries", f"name one of {', '.join(numbers)}")
            number = ids.index(query)
        else:
            try:
                number = int(query)
            except ValueError:
                raise RequestError("query", query, "no query has this id", close(str(query), ids)) from None
            if not 0 <= number < len(ids):
                raise RequestError("query", query, "is not there", f"the run has queries 0 to {len(ids) - 1}")
        status = queries["status"][number].as_py()
        if status != OK:
            raise RequestError("query", number, f"{printable(ids[number])!r} has no scores: {status}")
        return number

    def require_done(self) -> None:
        """Raises `RequestError` where the run is not done."""
        if self.state != "done":
            reason = f": {self._record.reason}" if self._record.reason else ""
            raise RequestError(
                "run", self.url, f"is {self._record.state!r}{reason}", "its tables are complete once it is done"
            )

    def _table(self, name: str) -> pa.Table:
        self.require_done()
        with telling_damage():
            return table_of(self.directory, self._record, name)

    def __repr__(self) -> str:
        summary = self.summary()
        rows = "rows not counted yet" if summary["rows"] is None else f"{summary['rows']:,} rows"
        queries = (
            ""
            if summary["queries"] is None
            else f", {summary['queries']:,} {'query' if summary['queries'] == 1 else 'queries'}"
        )
        return f"<Run {self.url}: {summary['state']}, {summary['method']}, {rows}{queries}>"

    def _repr_html_(self) -> str:
        """The summary; of a running run how far it is; of a finished one the first usable query with its top rows."""
        state = self.state
        progress = str(self._progress(state)) if state == "running" else None
        return in_a_cell(self, self._summary(self._record), self._record, progress)
