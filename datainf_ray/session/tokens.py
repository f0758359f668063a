"""`datainf tokens`: rows as the model sees them, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from numbers import Integral
from pathlib import Path
from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted
from datainf_ray.config import RunConfig, load_config
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.model.inspect import inspect_model, load_tokenizer
from datainf_ray.request.checkpoints import first_of
from datainf_ray.request.encoding import encoder_for, rows_of
from datainf_ray.request.seen import SeenRow, SeenRows, seen
from datainf_ray.request.template import with_day, with_template
from datainf_ray.request.understand import absolute
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.tasks.register import task_for, task_for_rows

FIRST = 3  #: rows that are shown where none is asked for


def tokens(
    config: str | Path | dict[str, Any] | RunConfig,
    *,
    queries: bool = False,
    rows: Sequence[int] | None = None,
    **overrides: Any,
) -> SeenRows:
    """Rows of a configuration's training corpus, or of its queries, as the model sees them.

    `rows` are row numbers from 0; None: the first few. Reads these rows and what the model's folder says; loads no
    weights, and looks at nothing else that a run would need; of several adapters it is the first. A row that cannot be
    used is shown with the reason.

    Raises `RequestError` where the model or the rows cannot be read, or there is no such row.

        >>> for row in datainf_ray.tokens("attribute.yaml", rows=[17]):
        ...     print(row)
    """
    asked = with_template(absolute(first_of(load_config(config, **overrides))))
    name = "queries" if queries else "train"
    task, options = task_for(asked), asked.storage_options
    corpus = plan_corpus(rows_of(asked, name), task_for_rows(asked, name), name, options)
    numbers = list(range(min(FIRST, corpus.rows)) if rows is None else dict.fromkeys(rows))
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise RequestError("--row", number, "is no row's number", f"give one from 0 to {corpus.rows - 1}")
        if not 0 <= number < corpus.rows:
            there = f"{name} has {counted(corpus.rows, 'row')}"
            raise RequestError("--row", number, there, f"give one from 0 to {corpus.rows - 1}")
    facts = inspect_model(asked.model, task, options)
    tokenizer = load_tokenizer(asked.model, options, task)
    asked = with_day(asked, tokenizer, {name: corpus}, RunDirectory(asked.output, options=options))
    task.check(corpus, facts.task, name)
    encoder = encoder_for(asked, name, corpus, facts, tokenizer)
    with closing(RowReader(corpus)) as reader:
        examples = encoder.encode(reader.read(rows_chunk(corpus, sorted(numbers)))) if numbers else []
    return SeenRows(seen(example, tokenizer, name) for example in examples)


__all__ = ["FIRST", "SeenRow", "SeenRows", "tokens"]
