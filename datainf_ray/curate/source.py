"""A finished run with the corpora that it was made of, which are read again; they must be what they were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted, printable
from datainf_ray.config import RowsConfig, RunConfig, load_config, options_among
from datainf_ray.corpus.beside import known_corpus
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.columns import require_column
from datainf_ray.corpus.rows import Row, RowReader
from datainf_ray.runs.results import Run
from datainf_ray.tasks.register import task_for_rows

_PORTION = 4096  # rows that are read at a time


@dataclass(frozen=True)
class Source:
    """A finished run with its configuration, and the corpora that it was made of, as they are now."""

    run: Run
    config: RunConfig
    planned: dict[str, Corpus] = field(default_factory=dict)

    def corpus(self, name: str) -> Corpus:
        """ "train" or "queries", planned anew. Raises `RequestError` where it cannot be, or is not what it was."""
        if name not in self.planned:
            self.planned[name] = self._plan(name)
        return self.planned[name]

    def _plan(self, name: str) -> Corpus:
        config, record = self.config, self.run.record
        asked: RowsConfig = getattr(config, name)
        corpus = known_corpus(asked, task_for_rows(config, name), name, config.storage_options)
        known, key, path = record.identity.get(name), f"{name}.path", ", ".join(asked.paths)
        assert record.counts is not None  # of a run that is done
        if name == "train" and corpus.rows != record.counts.rows:
            there = f"has {counted(corpus.rows, 'row')}, and the run {record.counts.rows:,}"
            raise RequestError(key, path, f"is not the corpus of {self.run.url}: it {there}")
        if name == "train" and (known is None or record.answers is not None):  # such a run knows its index, no corpus
            self._same_ids(corpus, key, path)
        elif known is not None and corpus.fingerprint() != known:
            problem = f"has changed since {self.run.url} was made"
            raise RequestError(key, path, problem, "only the rows that were attributed can be compared with it")
        if record.pictures:
            corpus = replace(corpus, made=self.run.directory.made)
        return corpus

    def _same_ids(self, corpus: Corpus, key: str, path: str) -> None:
        ids = self.run.examples(["id"])["id"]
        known_ids = (known for chunk in ids.chunks for known in chunk.to_pylist())
        for row, known in zip(read(corpus), known_ids, strict=True):
            if row.id != known:
                problem = f"is not the corpus of {self.run.url}: row {row.row} is {printable(row.id)}"
                raise RequestError(key, path, f"{problem}, and was {printable(known)}")


def source_of(run: Run, **overrides: Any) -> Source:
    """A finished run; `overrides` replace keys of its configuration, such as train.path where the corpus was moved."""
    run.queries()  # which says of a run that is not done that it is not
    if run.directory.options and not options_among(overrides):  # its corpus is where it was opened with these, too
        overrides["storage_options"] = run.directory.options
    return Source(run, load_config(run.config, **{"output": run.url, **overrides}))


def require_same(source: Source, other: Source, name: str) -> None:
    """Raises `RequestError` where the corpus that is "train" or "queries" is not the same in both runs."""
    ours, theirs = (one.run.record.identity.get(name) for one in (source, other))
    if ours is not None and ours == theirs and not (source.run.record.answers or other.run.record.answers):
        return
    first, second = (_content(one.corpus(name)) for one in (source, other))
    if first != second:
        what = "training rows" if name == "train" else "queries"
        raise RequestError("run", other.run.url, f"its {what} are not those of {source.run.url}")


def _content(corpus: Corpus) -> list[Any]:
    return [corpus.pictures, *((file.name, file.size, file.identity, file.rows) for file in corpus.files)]


def read(corpus: Corpus) -> Iterator[Row]:
    """All rows of a corpus, one after the other."""
    with closing(RowReader(corpus)) as reader:
        for chunk in corpus.chunks(_PORTION):
            yield from reader.read(chunk)


def values_of(corpus: Corpus, column: str, key: str) -> Iterator[tuple[Row, str | None]]:
    """Each row with a column's value as text; None where it is null, or not there, or the row unreadable."""
    require_column(column, [file for file in corpus.files if file.rows], key)
    for row in read(replace(corpus, columns={key: column}, types={})):  # a name that no task's role has
        yield row, _written(row.fields.get(key))


def _written(value: Any) -> str | None:
    """A value as a person writes it: a number without the zeros behind its point, a boolean as JSON has it."""
    if value is None or value != value:  # NaN is how pandas says null
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == math.floor(value):
        return str(math.floor(value))
    return str(value)
