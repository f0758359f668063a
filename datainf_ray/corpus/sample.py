"""A random sample of a corpus, as chunks that are worked on like any others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from datainf_ray.corpus.chunks import Chunk, Corpus, Segment

SINGLE_ROWS = 1_000_000  #: corpora up to this size are sampled row by row
RUN = 16  #: larger ones by aligned runs of so many neighbours


def sample_chunks(corpus: Corpus, rows: int, seed: int, chunk_rows: int, parts: int = 1) -> list[list[Chunk]]:
    """`rows` distinct rows at random, or all where there are not more, dealt into disjoint random `parts`.

    Parts are of equal size, up to one row. A part's rows are sorted by number and cut into chunks of at most
    `chunk_rows`. A chunk's `number` counts from 0 in each part, and its `first` is the position in the part, not in the
    corpus. Which rows they are follows from the corpus' size, `rows` and `seed` alone.

    A row far from its neighbours costs the decoding of a whole Parquet row group. So a corpus of more than a million
    rows is sampled in aligned runs of 16 neighbours: a cluster sample. Every row is as likely as any other, but where
    neighbours are alike, as in files sorted by source, a mean over the sample is less certain than `rows` suggests. A
    run stays within one part, but for the one in which a part ends, so that parts are as good as independent.
    """
    numbers = _draw(corpus.rows, min(rows, corpus.rows), np.random.Generator(np.random.PCG64(seed)))
    return [_chunks(corpus, np.sort(part), chunk_rows) for part in np.array_split(numbers, parts)]


def spread_chunk(corpus: Corpus, first: int, places: int, rows: int) -> Chunk:
    """Up to `rows` neighbours at each of `places` places, evenly spread over the rows from `first` on, as one chunk."""
    starts = np.linspace(first, max(corpus.rows - rows, first), places).astype(np.int64)
    numbers = np.unique((starts[:, None] + np.arange(rows)).reshape(-1))
    numbers = numbers[numbers < corpus.rows]
    return _chunks(corpus, numbers, len(numbers))[0]


def rows_chunk(corpus: Corpus, numbers: Sequence[int]) -> Chunk:
    """The rows of these ascending numbers, as one chunk."""
    return _chunks(corpus, np.array(numbers, np.int64), len(numbers))[0]


def _draw(population: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` distinct numbers below `population` in random order, those of a run in succession."""
    run = 1 if population <= SINGLE_ROWS else RUN
    runs = -(-population // run)
    # One more than needed: the corpus' last run may be short. `choice` keeps a set unless it draws a 50th of them.
    drawn = random.choice(runs, min(runs, -(-count // run) + 1), replace=False)
    within = np.tile(np.arange(run), (len(drawn), 1))
    numbers = (drawn[:, None] * run + random.permuted(within, axis=1)).reshape(-1)
    return numbers[numbers < population][:count]


def _chunks(corpus: Corpus, numbers: np.ndarray, chunk_rows: int) -> list[Chunk]:
    """Ascending row numbers as chunks; neighbours in one file share a segment."""
    begins = np.fromiter(itertools.accumulate((f.rows for f in corpus.files), initial=0), np.int64)
    files = np.searchsorted(begins, numbers, side="right") - 1
    places = np.arange(len(numbers))
    apart = (np.diff(numbers, prepend=-2) != 1) | (np.diff(files, prepend=-1) != 0) | (places % chunk_rows == 0)
    first = np.flatnonzero(apart)
    last = np.append(first, len(numbers))[1:] - 1
    starts, stops = numbers[first] - begins[files[first]], numbers[last] - begins[files[first]] + 1
    of_chunk: list[list[Segment]] = [[] for _ in range(0, len(numbers), chunk_rows)]
    for chunk, *segment in zip(*(a.tolist() for a in (first // chunk_rows, files[first], starts, stops)), strict=True):
        of_chunk[chunk].append(Segment(*segment))
    return [Chunk(k, k * chunk_rows, tuple(segments)) for k, segments in enumerate(of_chunk)]
