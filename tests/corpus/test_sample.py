from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from datainf_ray.config import QueriesConfig
from datainf_ray.corpus import sample
from datainf_ray.corpus.chunks import Chunk, Corpus, Segment, plan_corpus
from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import sample_chunks
from tests import tiny


def corpus_of(*sizes: int) -> Corpus:
    """A corpus of files that are not there: enough for drawing rows."""
    files = tuple(SourceFile(f"{k}.jsonl", f"{k}.jsonl", "jsonl", None, 1, "", rows=n) for k, n in enumerate(sizes))
    return Corpus(files, "text", {"text": "text"}, None, None, sum(sizes))


def numbers(corpus: Corpus, chunks: list[Chunk]) -> list[int]:
    begins = np.cumsum([0, *(file.rows for file in corpus.files)]).tolist()
    return [begins[s.file] + row for chunk in chunks for s in chunk.segments for row in range(s.start, s.stop)]


SHAPES = [
    ((7, 0, 90, 1, 2), 40, 8, 3),
    ((100,), 100, 100, 1),
    ((100,), 1000, 7, 4),
    ((5,), 3, 10, 5),  # more parts than rows
    ((1,), 1, 1, 1),
    ((999_999, 3, 500_000), 1024, 100, 2),  # runs, the last of them short
    ((1_000_001,), 2_000_000, 4096, 2),
    ((10**6, 10**6), 1, 16, 1),
]


@pytest.mark.parametrize(("sizes", "rows", "chunk_rows", "parts"), SHAPES)
def test_a_sample_is_distinct_rows_of_the_corpus_in_disjoint_parts_of_equal_size(sizes, rows, chunk_rows, parts):
    corpus = corpus_of(*sizes)
    drawn = sample_chunks(corpus, rows, 3, chunk_rows, parts)
    each = [numbers(corpus, chunks) for chunks in drawn]
    together = [number for part in each for number in part]
    assert len(together) == len(set(together)) == min(rows, corpus.rows)
    assert set(together) <= set(range(corpus.rows))
    assert len(each) == parts
    assert max(map(len, each)) - min(map(len, each)) <= 1
    for part, chunks in zip(each, drawn, strict=True):
        assert part == sorted(part)
        assert [c.number for c in chunks] == list(range(-(-len(part) // chunk_rows)))
        assert [c.first for c in chunks] == [k * chunk_rows for k in range(len(chunks))]
        assert all(c.rows == chunk_rows for c in chunks[:-1])
        assert all(s.stop <= corpus.files[s.file].rows for c in chunks for s in c.segments)


def test_the_same_seed_draws_the_same_rows_and_another_draws_others():
    for corpus in (corpus_of(500, 500), corpus_of(2_000_000)):
        assert sample_chunks(corpus, 100, 0, 10, 2) == sample_chunks(corpus, 100, 0, 10, 2)
        one, other = (set(numbers(corpus, sample_chunks(corpus, 100, seed, 10)[0])) for seed in (0, 1))
        assert len(one & other) < 50
        halves = sample_chunks(corpus, 100, 0, 64, parts=2)
        assert one == {number for half in halves for number in numbers(corpus, half)}


def test_the_rows_of_a_seed_stay_what_they_were():
    """A run that goes on after an update must draw what it drew before it."""
    assert numbers(corpus_of(50), sample_chunks(corpus_of(50), 5, 0, 5)[0]) == [2, 12, 15, 24, 29]


@pytest.mark.parametrize("population", [50, 1000])
def test_every_row_is_drawn_about_equally_often_and_so_is_every_part(monkeypatch, population):
    if population > 50:  # in runs of which the last is short
        monkeypatch.setattr(sample, "SINGLE_ROWS", 990)
    corpus = corpus_of(population // 2 - 1, population // 2 + 1)
    taken = np.zeros((2, population))
    draws, rows = 4000, 20
    for seed in range(draws):
        for k, part in enumerate(sample_chunks(corpus, rows, seed, 50, parts=2)):
            taken[k, numbers(corpus, part)] += 1
    expected = draws * rows / 2 / population
    assert abs(taken / expected - 1).max() < 6 / expected**0.5  # binomial, the spread of 2000 counts at most


def test_a_large_corpus_is_sampled_in_runs_of_neighbours_that_stay_together():
    corpus = corpus_of(1_600_000)
    parts = sample_chunks(corpus, 1600, 5, 100_000, parts=2)
    lengths = [s.stop - s.start for (chunk,) in parts for s in chunk.segments]
    assert lengths.count(16) >= 90
    assert len(lengths) <= 102
    assert all(s.start % 16 == 0 for (chunk,) in parts for s in chunk.segments if s.stop - s.start == 16)


def test_neighbours_share_a_segment_but_not_across_files_or_chunks():
    assert sample_chunks(corpus_of(5, 0, 4, 3), 12, 0, 7) == [
        [
            Chunk(0, 0, (Segment(0, 0, 5), Segment(2, 0, 2))),
            Chunk(1, 7, (Segment(2, 2, 4), Segment(3, 0, 3))),
        ]
    ]


def test_drawing_from_a_hundred_million_rows_takes_neither_time_nor_memory():
    corpus = corpus_of(*[1_000_000] * 100)
    tracemalloc.start()
    began = time.process_time()
    (chunks,) = sample_chunks(corpus, 1024, 0, 128)
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 10e6  # a byte per row would be 100 MB
    tracemalloc.stop()
    assert sum(chunk.rows for chunk in chunks) == 1024


@pytest.mark.parametrize("run", [1, 16])
def test_a_sample_is_read_from_files_of_any_format(write, monkeypatch, run):
    monkeypatch.setattr(sample, "SINGLE_ROWS", 0 if run == 16 else 10**6)
    files = {"a.parquet": 40, "b.jsonl": 33, "c.csv.gz": 50, "d.arrow": 9, "e.jsonl.zst": 20}
    paths = [
        write(name, [{"text": f"{name} {i}", "name": f"{name}/{i}"} for i in range(n)]) for name, n in files.items()
    ]
    corpus = plan_corpus(QueriesConfig(path=paths, id="name"), tiny.task("causal-lm"), "queries")
    everything = [f"{name}/{i}" for name, n in files.items() for i in range(n)]
    reader = RowReader(corpus)
    seen = set()
    for part in sample_chunks(corpus, 60, 1, 7, parts=2):
        rows = [reader.read(chunk) for chunk in part]
        assert [len(r) for r in rows] == [chunk.rows for chunk in part]
        flat = [row for r in rows for row in r]
        assert [row.row for row in flat] == numbers(corpus, part)
        assert [row.id for row in flat] == [everything[n] for n in numbers(corpus, part)]
        assert all(row.problem is None and row.fields["text"] == row.id.replace("/", " ") for row in flat)
        seen |= {row.row for row in flat}
    assert len(seen) == 60
