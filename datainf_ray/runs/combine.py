"""The weighted sum of the influences of several runs over the same rows, a portion of rows at a time.

    I(q, k) = Σ_c w_c I_c(q, k)

over the runs c, checkpoints of one fine-tune as a rule: TracIn's sum with the learning rates as weights w, and LESS'
with the mean rate of every epoch. Products and sums are float64, in the order of the runs. Memory does not grow with
the rows: of every run a row group is held at a time, wherever its parts were cut.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import DamagedError, RequestError
from datainf_ray.common.redaction import redacted
from datainf_ray.common.words import printable
from datainf_ray.runs.checkpoints import CHECKPOINTS
from datainf_ray.runs.checksums import Stored, read_document, write_document
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.files import telling_damage
from datainf_ray.runs.parts import PART_BYTES, check_part, count_rows, part_name, row_bytes, write_part
from datainf_ray.runs.pictures import pictures_among
from datainf_ray.runs.record import Problem
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import (
    OK,
    across,
    blocks_schema,
    examples_schema,
    group_rows,
    matrix,
    plain,
    plain_schema,
    queries_schema,
    vectors,
)
from datainf_ray.runs.texts import QUERY, ROW, texts_of_queries, texts_of_rows, with_previews
from datainf_ray.runs.top import Top, merge_top, read_top, select_top, top_table, write_top

#: What progress and run.json call the pass over the runs' rows.
SWEEP = "combine"
#: What a row is called of which the sum is no number.
NONFINITE = "nonfinite"
_NO_NUMBER = "the weighted sum of its influences is no number"
_MOST_PROBLEMS = 100
_COLUMNS = ["row", "id", "tokens", "tokens_cut", "loss", "sqnorm", "status", "detail", "influence", "predicted"]
_SELVES = ["self_influence", "self_influence_error"]


@dataclass(frozen=True)
class Source:
    """One of the runs: its weight, and for each query of the sum the number that it has in this run."""

    run: Run
    weight: float
    places: np.ndarray

    @functools.cached_property
    def parts(self) -> list[tuple[str, int]]:
        """The names of its parts, and the row that each begins with."""
        with telling_damage():
            names = self.run.part_names()
            counts = [count_rows(self.run.directory, name) for name in names]
        return list(zip(names, itertools.accumulate(counts, initial=0), strict=False))

    def rows(self, first: int, columns: list[str]) -> Iterator[pa.Table]:
        """Its rows from one on, in portions."""
        last = max((at for at, (_, start) in enumerate(self.parts) if start <= first), default=0)
        for name, start in self.parts[last:]:
            yield from self.run.parts([name], columns, first=max(0, first - start))


@dataclass(frozen=True)
class Sum:
    """What is summed: all that follows from the runs before any row is read."""

    sources: tuple[Source, ...]
    rows: int
    queries: int
    selves: bool  # every run has its rows' influence on themselves
    unusable: tuple[int, ...]  # queries that some run could not use
    top_k: int

    @property
    def schema(self) -> pa.Schema:
        return examples_schema(self.queries, selves=self.selves)

    def parts(self) -> list[range]:
        return parts_of(self.rows, self.queries, self.selves)


@dataclass
class Tally:
    """What run.json says of the rows of a part, or of all."""

    status: Counter[str] = field(default_factory=Counter)
    tokens: int = 0  # of the rows that have a score
    cut: int | None = 0  # rows with more tokens than max_length; None where that was not counted
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.status += other.status
        self.tokens += other.tokens
        self.cut = None if self.cut is None or other.cut is None else self.cut + other.cut
        self.problems = [*self.problems, *other.problems][:_MOST_PROBLEMS]


def parts_of(rows: int, queries: int, selves: bool) -> list[range]:
    """The rows of every part of a sum, as equal as they can be; they follow from its size alone."""
    count = max(1, rows * row_bytes(queries, selves=selves) // PART_BYTES)
    edges = [number * rows // count for number in range(count + 1)]
    return [range(*edge) for edge in itertools.pairwise(edges)]


def content_of(run: Run) -> str:
    """A digest of what the tables of a finished run hold, as its run.json says; of an older run what it is called."""
    known = {name: stored.sha256 for name, stored in run.record.files.items()} or run.record.fingerprint
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def write_sum(
    directory: RunDirectory, what: Sum, owner: str, done: Callable[[int, int], None]
) -> tuple[dict[str, Stored], Top, Tally]:
    """Write every part of examples/, but for those that an earlier attempt of the same `owner` has left whole.

    Returns what each part holds, the strongest rows of all (previews are null) and what there is to say of the rows.
    `done` is called with so many more rows and tokens; it may raise an error, which ends the work. Raises
    `RequestError` where a run's file is damaged, or the runs have not the same rows.
    """
    files: dict[str, Stored] = {}
    best, whole = _no_rows(what), Tally()
    for number, rows in enumerate(what.parts()):
        made = _made(directory, number, owner)
        if made is None:
            made = _write(directory, number, rows, what, owner, done)
        else:
            done(len(rows), made[2].tokens)
        files[part_name(number)], top, tally = made
        best = merge_top(best, top)
        whole.add(tally)
    return files, best, whole


def _name(number: int) -> str:
    return f"{CHECKPOINTS}/combined/part-{number:06d}"


def _made(directory: RunDirectory, number: int, owner: str) -> tuple[Stored, Top, Tally] | None:
    """A part that an earlier attempt has written; None where it is not there, or not as it was written."""
    try:
        told = read_document(directory, f"{_name(number)}.json", owner)
        known = Stored.model_validate(told["stored"])
        check_part(directory, part_name(number), known, whole=True)
        top = read_top(directory, f"{_name(number)}.top", owner)
    except (DamagedError, FileNotFoundError):
        return None
    problems = [Problem.model_validate(problem) for problem in told["problems"]]
    return known, top, Tally(Counter(told["status"]), told["tokens"], told["cut"], problems)


def _write(
    directory: RunDirectory, number: int, rows: range, what: Sum, owner: str, done: Callable[[int, int], None]
) -> tuple[Stored, Top, Tally]:
    best, tally = _no_rows(what), Tally()

    def tables() -> Iterator[pa.Table]:
        nonlocal best
        for tables in _together(what, rows):
            before = tally.tokens
            table = _added(tables, what, tally)
            values, texts = matrix(table["influence"]), table.select(["row", "id"])
            best = merge_top(best, select_top(values, table["row"].to_numpy(), texts, what.top_k))
            yield plain(table)
            done(len(table), tally.tokens - before)

    known = write_part(directory, number, plain_schema(what.schema), tables())
    write_top(directory, f"{_name(number)}.top", best, owner)
    told = {
        "stored": known.model_dump(),
        "status": dict(tally.status),
        "tokens": tally.tokens,
        "cut": tally.cut,
        "problems": [problem.model_dump() for problem in tally.problems],
    }
    write_document(directory, f"{_name(number)}.json", told, owner)  # last: it says that the others are there
    return known, best, tally


def _no_rows(what: Sum) -> Top:
    texts = pa.table({"row": pa.array([], pa.int64()), "id": []})
    return select_top(np.empty((0, what.queries), np.float32), np.empty(0, np.int64), texts, what.top_k)


def _together(what: Sum, rows: range) -> Iterator[list[pa.Table]]:
    """The same rows of every run at a time, at most a row group of them, to the end of `rows`."""
    columns = _COLUMNS + (_SELVES if what.selves else [])
    streams = [source.rows(rows.start, columns) for source in what.sources]
    held: list[pa.Table | None] = [None] * len(streams)
    most, left = group_rows(what.schema), len(rows)
    while left:
        for at, stream in enumerate(streams):
            if held[at] is None:
                held[at] = next(stream, None)
        tables = [table for table in held if table is not None]
        if len(tables) < len(streams):
            short = what.sources[[table is None for table in held].index(True)].run
            raise RequestError("run", short.url, f"has fewer than {what.rows:,} rows", "run it again")
        step = min(left, most, *map(len, tables))
        yield [table.slice(0, step) for table in tables]
        held = [table.slice(step) if len(table) > step else None for table in tables]
        left -= step


def _added(tables: Sequence[pa.Table], what: Sum, tally: Tally) -> pa.Table:
    """The weighted sum of the same rows of all runs."""
    last, weights = tables[-1], [source.weight for source in what.sources]
    for source, table in zip(what.sources, tables, strict=True):
        if not all(table[name].equals(last[name]) for name in ("row", "id")):
            other = what.sources[-1].run.url
            problem = f"does not have the rows of {other}"
            raise RequestError("run", source.run.url, problem, "combine runs of the same rows")
    statuses = [table["status"].to_numpy(zero_copy_only=False) for table in tables]
    status = functools.reduce(lambda one, other: np.where(one == OK, other, one), statuses)
    fine = status == OK
    influence = np.zeros((len(last), what.queries))
    for source, table in zip(what.sources, tables, strict=True):
        values = matrix(table["influence"]).astype(np.float64)
        influence += source.weight * (values if _in_order(source.places, values) else values[:, source.places])
    with np.errstate(over="ignore"):  # what is too large for a float32 is told by its status
        summed = influence.astype(np.float32)
    summed[:, list(what.unusable)] = np.nan
    asked = np.setdiff1d(np.arange(what.queries), what.unusable)
    infinite = fine & ~np.isfinite(summed[:, asked]).all(axis=1)
    status, fine = np.where(infinite, NONFINITE, status), fine & ~infinite
    summed[~fine] = np.nan

    def total(name: str, factors: Sequence[float], power: int = 1) -> pa.Array:
        values = sum(w**power * _numbers(table, name) ** power for w, table in zip(factors, tables, strict=True))
        with np.errstate(over="ignore", invalid="ignore"):
            return pa.array(np.asarray(values ** (1 / power), np.float32), pa.float32(), mask=~fine)

    shares = [weight / sum(weights) for weight in weights]
    columns = [*(last[name] for name in ("row", "id", "tokens", "tokens_cut"))]
    columns += [total("loss", shares), total("sqnorm", weights), pa.array(status, pa.string())]
    columns += [_details(tables, status), vectors(summed, ~fine), *across(summed[:, asked], ~fine)]
    if what.selves:
        columns += [total(_SELVES[0], weights), total(_SELVES[1], weights, power=2)]
    columns.append(pc.if_else(pa.array(fine), last["predicted"], pa.scalar(None, pa.string())))
    _note(tally, statuses, status, last, what)
    return pa.table(columns, schema=what.schema)


def _details(tables: Sequence[pa.Table], status: np.ndarray) -> pa.Array:
    """For each row without a score what the first run says that has none of it; null where nothing is said."""
    found = pa.array([_NO_NUMBER] * len(status), pa.string())
    for table in reversed(tables):
        found = pc.if_else(pc.equal(table["status"], OK), found, table["detail"])
    return pc.if_else(pa.array(status == OK), pa.scalar(None, pa.string()), found)


def _in_order(places: np.ndarray, values: np.ndarray) -> bool:
    return len(places) == values.shape[1] and bool(np.all(places == np.arange(len(places))))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.float64()).to_numpy()


def _note(tally: Tally, statuses: Sequence[np.ndarray], status: np.ndarray, table: pa.Table, what: Sum) -> None:
    fine = status == OK
    counts = what.sources[-1].run.record.counts
    counted = counts is not None and counts.rows_cut is not None
    some = Tally(
        Counter(status.tolist()),
        int(table["tokens"].filter(pa.array(fine)).to_numpy().sum()),
        int(pc.sum(pc.greater(table["tokens_cut"], 0)).as_py() or 0) if counted else None,
    )
    ids = table["id"]
    for row in np.flatnonzero(~fine)[: _MOST_PROBLEMS - len(tally.problems)]:
        name = ids[int(row)].as_py()
        at = next((k for k, one in enumerate(statuses) if one[row] != OK), None)
        if at is None:
            detail = _NO_NUMBER
        else:
            run = what.sources[at].run
            known = next((p.detail for p in run.record.problems if p.id == name and p.status == status[row]), "")
            detail = ": ".join(filter(None, (f"in {redacted(run.url)}", known)))
        some.problems.append(Problem(id=name, status=str(status[row]), detail=detail))
    tally.add(some)


def combined_queries(what: Sum) -> pa.Table:
    """queries.parquet of the sum: those of the last run; the loss is the weighted mean, as it is of rows."""
    tables = [source.run.queries().take(pa.array(source.places)) for source in what.sources]
    statuses = [table["status"].to_pylist() for table in tables]
    status = [next((one for one in each if one != OK), OK) for each in zip(*statuses, strict=True)]
    bad = np.array([one != OK for one in status])
    weights = [source.weight for source in what.sources]
    losses = [_numbers(table, "loss") for table in tables]
    loss = sum(w / sum(weights) * values for w, values in zip(weights, losses, strict=True))
    last = tables[-1]
    rows = functools.reduce(np.minimum, [table["rows"].to_numpy() for table in tables])
    columns = [
        pa.array(np.arange(what.queries), pa.int32()),
        last["id"],
        pa.array(np.where(bad, 0, rows), pa.int64()),
        last["tokens"],
        pa.array(np.asarray(loss, np.float32), pa.float32(), mask=bad),
        last["preview"],
        pa.array(status, pa.string()),
    ]
    return pa.table(columns, schema=queries_schema())


def combined_blocks(sources: Sequence[Source]) -> pa.Table:
    """blocks.parquet of the sum: all blocks of the first run, then those of the next; NUMBER/NAME is what each is
    called, with its run's number from 0.
    """
    tables = []
    for number, source in enumerate(sources):
        table = source.run.blocks()
        names = pa.array([f"{number}/{name}" for name in table["block"].to_pylist()], pa.string())
        tables.append(table.set_column(0, blocks_schema().field("block"), names))
    return pa.concat_tables(tables)


def combined_texts(what: Sum, rows: pa.Table) -> pa.Table:
    """texts.parquet of the sum: of its best `rows` (row, id) what any run says of them, and the last run's queries.

    `text` is null for a row that none of the runs lists.
    """
    known: dict[int, str | None] = {}
    tables = [source.run.texts() for source in what.sources]
    for texts in tables:
        of_rows = texts.filter(pc.and_(pc.equal(texts["kind"], ROW), pc.is_in(texts["number"], rows["row"])))
        known |= dict(zip(of_rows["number"].to_pylist(), of_rows["text"].to_pylist(), strict=True))
    texts = pa.array(map(known.get, rows["row"].to_pylist()), pa.string())
    asked = [(one["number"], one) for one in tables[-1].to_pylist() if one["kind"] == QUERY]
    number = {place: query for query, place in enumerate(what.sources[-1].places.tolist())}
    kept = sorted(((number[place], one) for place, one in asked if place in number), key=lambda pair: pair[0])
    queries = texts_of_queries([q for q, _ in kept], [one["id"] for _, one in kept], [one["text"] for _, one in kept])
    return pa.concat_tables([texts_of_rows(pa.table([rows["row"], rows["id"], texts], ["row", "id", "text"])), queries])


def combined_pictures(what: Sum, texts: pa.Table) -> pa.Table:
    """pictures.parquet of the sum, with as much of it as the runs have of the rows and queries in its `texts`."""
    number = {place: query for query, place in enumerate(what.sources[-1].places.tolist())}
    return pictures_among([source.run.pictures() for source in what.sources], texts, number)


def combined_top(top: Top, texts: pa.Table, sources: Sequence[Source]) -> pa.Table:
    """top.parquet of the sum. A row's preview is made of its text, else it is what a run's own says of the row."""
    tops = top_table(top)
    known: dict[int, str | None] = {}
    needed = pc.unique(tops["row"])
    for source in sources:
        listed = source.run.tops().select(["row", "preview"])
        listed = listed.filter(pc.is_in(listed["row"], needed))
        known |= dict(zip(listed["row"].to_pylist(), listed["preview"].to_pylist(), strict=True))
    at = tops.schema.get_field_index("preview")
    previews = pa.array(map(known.get, tops["row"].to_pylist()), pa.string())
    own = ":" in sources[-1].run.config["model"]["task"]  # a task of the user's own may have made them in its own way
    return with_previews(tops.set_column(at, tops.schema.field(at), previews), texts, own)


def same_ids(run: Run, other: Run) -> str | None:
    """The first query whose id is another in the two runs, in words; None where they are the same."""
    ids, others = run.queries()["id"].to_pylist(), other.queries()["id"].to_pylist()
    if len(ids) != len(others):
        return f"has {len(ids):,} of them, and {other.url} has {len(others):,}"
    return next(
        (f"calls query {n} {printable(a)}, and {other.url} calls it {printable(b)}"
         for n, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b),
        None,
    )  # fmt: skip
