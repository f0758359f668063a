"""Corpora planned and read, as the tests of rows do."""

from __future__ import annotations

from typing import Any

from datainf_ray.config import QueriesConfig
from datainf_ray.corpus.chunks import Corpus, plan_corpus
from datainf_ray.corpus.rows import Row, RowReader
from tests import tiny


def plan(path: Any, task: str = "causal-lm", **options: Any) -> Corpus:
    return plan_corpus(QueriesConfig(path=path, **options), tiny.task(task), "queries")


def read(corpus: Corpus, chunk_rows: int = 1000) -> list[Row]:
    reader = RowReader(corpus)
    return [row for chunk in corpus.chunks(chunk_rows) for row in reader.read(chunk)]
