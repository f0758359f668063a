"""BM25: the order of the training rows by the words that they share with the queries, without any model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.talks import is_talk, text_of_talk
from datainf_ray.curate.source import read

_NOT_TEXT = ("label",)  # roles that say what a row is, and are none of its words


class SharedWords:
    """The words of the training rows, and of each query; all in memory."""

    def __init__(self, train: Corpus, queries: Corpus, groups: np.ndarray) -> None:
        """`groups` has the query's number for every row of `queries`.

        Raises `RequestError` where the library is not installed.
        """
        try:
            import bm25s
        except ImportError:
            remedy = 'pip install "datainf-ray[evaluate]", or leave BM25 out with --no-bm25'
            raise RequestError("evaluate", None, "bm25s is not installed", remedy) from None
        rows = [text_of(row) for row in read(train)]
        self._rows = len(rows)
        # No list of stop words: it would be of one language, and BM25 gives words that are everywhere no weight anyway.
        tokens = bm25s.tokenize(rows, stopwords=None, show_progress=False)
        self.found = any(tokens.ids)  #: there is any word at all, of two characters at least
        self._queries: list[list[str]] = [[] for _ in range(int(groups.max()) + 1)]
        if not self.found:
            return
        self._index = bm25s.BM25()
        self._index.index(tokens, show_progress=False)
        asked = [text_of(row) for row in read(queries)]
        words = bm25s.tokenize(asked, stopwords=None, return_ids=False, show_progress=False)
        for group, found in zip(groups.tolist(), words, strict=True):
            self._queries[group] += found

    def scores(self, queries: Sequence[int]) -> Iterator[np.ndarray]:
        """For each of these queries, in order, the BM25 score of every training row (n, float32)."""
        for query in queries:
            words = self._queries[query]
            yield self._index.get_scores(words) if words else np.zeros(self._rows, np.float32)


def text_of(row: Row) -> str:
    """All words of a row that the model is trained on: its texts, what is said in its talks, or its token ids."""
    texts = []
    for role, value in row.fields.items():
        if role in _NOT_TEXT:
            continue
        if isinstance(value, str):
            texts.append(value)
        elif role == "input_ids" and isinstance(value, list):
            texts.append(" ".join(f"id{token}" for token in value))  # a word has two characters at least
        elif is_talk(value):
            texts.append(text_of_talk(value))
    return "\n".join(texts)
