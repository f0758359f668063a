"""One row of a finished run, whole: what it says, what the run knows of it, where it stands, and what is like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import failing
from datainf_ray.common.words import counted, escaped, printable, spelled
from datainf_ray.config import options_among
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.lookup import names_in
from datainf_ray.curate.content import file_of, parts_of, some_rows
from datainf_ray.curate.siblings import alike
from datainf_ray.curate.source import source_of
from datainf_ray.runs.labels import given_in
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.scores import in_order
from datainf_ray.runs.together import Standing, standings

_NEIGHBOURS = 10  # that are named
_AT_ONCE = 1 << 16
_COLUMN = 200  # characters of another column's value for a person


@dataclass(frozen=True)
class ShownRow:
    """A row, whole. `str` gives it as a person reads it."""

    run: str
    row: int
    id: str
    known: dict[str, Any]  #: of it in examples/: status, tokens, loss and more, all but lists
    problem: str | None  #: why it cannot be encoded, where that shows in the row itself
    parts: list[tuple[str, str]]  #: its roles, or who speaks, each with the whole text
    columns: dict[str, Any]  #: the corpus' other columns
    influence: list[Standing] | None  #: on all queries and on each; None where the run stored no scores
    neighbours: list[dict[str, Any]] | None  #: row, id and share of the most alike; None where nobody looked
    alike: int  #: how many rows are nearly alike in all
    notes: list[str] = field(default_factory=list)
    given: str | None = None  #: its label in the words of `known["predicted"]`, where the run lists the row

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "parts": [{"role": role, "text": text} for role, text in self.parts]}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """It as a person reads it: nothing in it moves a terminal's cursor."""
        known = ", ".join(f"{name} {_value(value)}" for name, value in self.known.items() if value is not None)
        known += f", given {escaped(self.given, 300)}" if self.given is not None else ""
        lines = [f"row {self.row:,} · {escaped(self.id, 200)}", known]
        if self.problem:
            lines.append(f"cannot be used: {escaped(self.problem, 500)}")
        for role, text in self.parts:
            lines += [f"── {printable(role, 60)} ──", spelled(text)]
        if self.columns:
            lines.append("── other columns ──")
            lines += [f"{printable(name, 60)}: {escaped(str(one), _COLUMN)}" for name, one in self.columns.items()]
        lines.append("── influence ──")
        lines += _standing_lines(self.influence)
        if self.neighbours is not None:
            lines.append("── nearly alike ──")
            lines += [f"row {one['row']:,} · {escaped(one['id'], 200)}: {one['alike']:.0%}" for one in self.neighbours]
            if self.alike > len(self.neighbours):
                lines.append(f"and {counted(self.alike - len(self.neighbours), 'more row')}")
            if not self.alike:
                lines.append("no other row")
        return [*lines, *(escaped(note) for note in self.notes)]


def show(run: str | Run, row: int | str, neighbours: bool = True, **overrides: Any) -> ShownRow:
    """One row of a finished run: its whole text from the corpus, its loss, tokens and status, its influence on every
    query with its rank on its side, and the rows of the corpus whose text is nearly the same.

    `row` is its number or its id. Looking for neighbours takes a pass over the corpus and the extra `curate`.
    `overrides` replace keys of the run's configuration, such as train.path where the corpus was moved. Raises
    `RequestError` where there is no such row, or the corpus is not what it was.

        >>> print(run.row(17))
    """
    with failing():
        opened = run if isinstance(run, Run) else open_run(run, options_among(overrides))
        source = source_of(opened, **overrides)
        known = _known(opened, row)
        number, name = known.pop("row"), known.pop("id")
        corpus = source.corpus("train")
        (read,) = some_rows(corpus, [number])
        places, notes = None, []
        if opened.has_scores:
            places = standings(opened, number)
        else:
            notes.append("the run stored no scores (results.scores: false): datainf top has the rows that it listed")
        given = given_in(opened.texts(), [number]).get(number) if known.get("predicted") else None
        near: list[dict[str, Any]] | None = None
        if neighbours:
            try:
                near = alike(corpus, read)
            except RequestError as error:
                why = "; ".join(part for part in (error.problem, error.remedy) if part)
                notes.append(f"nearly alike rows are not looked for: it {why}")
        return ShownRow(
            opened.url, number, name, known, read.problem, parts_of(read), _others(corpus, number), places,
            None if near is None else near[:_NEIGHBOURS], len(near or ()), notes, given,
        )  # fmt: skip


def _known(run: Run, row: int | str) -> dict[str, Any]:
    """What examples/ has of a row, but its lists. Raises `RequestError` where there is no such row, or several."""
    counts = run.record.counts
    assert counts is not None  # of a run that is done
    there = next(run.parts(run.part_names()[:1])).schema.names
    names = [name for name in there if "influence" not in name or name == "self_influence"]
    wanted, found, at = str(row), list[int](), None
    if isinstance(row, str):
        for first, table in _numbered(run, ["id"]):
            found += [first + n for n, name in enumerate(table["id"].to_pylist()) if name == wanted]
    if len(found) > 1:
        some = ", ".join(map(str, found[:10]))
        raise RequestError("row", row, f"is the id of {counted(len(found), 'row')}", f"name one by its number: {some}")
    if found:
        at = found[0]
    elif wanted.isascii() and wanted.isdigit() and int(wanted) < counts.rows:
        at = int(wanted)
    else:
        raise RequestError("row", row, "no row has this id", f"or a number from 0 to {counts.rows - 1}")
    for first, table in _numbered(run, names):
        if first <= at < first + len(table):
            values: dict[str, Any] = table.slice(at - first, 1).to_pylist()[0]
            return values
    raise AssertionError("a run has all rows that it counts")


def _numbered(run: Run, columns: list[str]) -> Iterator[tuple[int, Any]]:
    first = 0
    for table in in_order(run, columns, _AT_ONCE):
        yield first, table
        first += len(table)


def _others(corpus: Corpus, row: int) -> dict[str, Any]:
    """The values of a row in the columns that have no role."""
    taken = {name for column in corpus.columns.values() for name in names_in(column)}
    file = file_of(corpus, row)
    names = [name for name in file.columns if name not in taken]
    (found,) = some_rows(replace(corpus, columns={name: name for name in names}, types={}, kind="any"), [row])
    return {name: value for name, value in found.fields.items() if value is not None}


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escaped(str(value), 300)


def _standing_lines(places: list[Standing] | None) -> list[str]:
    if not places:
        return ["no score"]
    lines = []
    for one in places:
        name = "all queries, in RMS" if one.query is None else f"{one.query}: {printable(one.id or '', 60)}"
        place = "neither" if one.rank is None else f"{one.side} {one.rank:,} of {one.of:,}"
        lines.append(f"{one.influence:>+11.3e}  {place:<26} {name}")
    return lines
