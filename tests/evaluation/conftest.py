"""Finished runs with known influences, whose corpora lie beside them and can be read again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.config import load_config
from datainf_ray.corpus.beside import known_corpus
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.tasks.register import task_of
from tests.runs.conftest import Made, make_run

ROWS, QUERIES, CHUNK = 40, 4, 16


@dataclass
class Evaluated:
    """A fabricated run in `folder`/run, with the corpora `folder`/sft-*.parquet and `folder`/queries.jsonl."""

    made: Made
    folder: Path
    rows: list[dict[str, Any]]
    queries: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return self.made.run.url

    def scores(self) -> np.ndarray:
        """The influences, and for rows without one what stands below all others when harmful ones come first."""
        return np.where(np.isnan(self.made.influence), -1e9, self.made.influence)


def corpus_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    draw = np.random.default_rng(5)
    words = ["the", "and", *(f"word{n}" for n in range(18))]  # words that lists of stop words have count, too
    rows = [
        {
            "prompt": " ".join(draw.choice(words, 4)),
            "completion": f"answer {n}",
            "flipped": bool(n % 4 == 1),
            "topic": "abc"[n % 3],
            "bad": None if n == 7 else n % 2,
        }
        for n in range(ROWS)
    ]
    queries = [
        {"prompt": " ".join(["the", *draw.choice(words, 4)]), "completion": "x", "topic": "abca"[n]}
        for n in range(QUERIES)
    ]
    return rows, queries


def write_corpora(folder: Path, rows: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    for number, first in enumerate(range(0, ROWS, CHUNK)):
        pq.write_table(pa.Table.from_pylist(rows[first : first + CHUNK]), folder / f"sft-{number:02d}.parquet")
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))


def make(folder: Path, name: str = "run", seed: int = 0, **more: Any) -> Evaluated:
    """Influences say something of `flipped` and of the query's topic. More keywords are as in `make_run`."""
    rows, queries = corpus_rows()
    write_corpora(folder, rows, queries)
    draw = np.random.default_rng(seed)
    influence = draw.normal(size=(ROWS, QUERIES))
    influence += np.array([row["flipped"] for row in rows])[:, None]
    influence -= np.array([[row["topic"] == query["topic"] for query in queries] for row in rows])
    more.setdefault("influence", influence.astype(np.float32))
    made = make_run(
        str(folder / name),
        ROWS,
        QUERIES,
        chunk=CHUNK,
        path=str(folder / "sft-*.parquet"),
        queries_path=str(folder / "queries.jsonl"),
        **more,
    )
    if "identity" not in more:
        sign(made)
    return Evaluated(made, folder, rows, queries)


def sign(made: Made) -> None:
    """Write into run.json what its corpora are now, as the main job does."""
    config = load_config(made.run.config)
    task = task_of(config.model)
    known = {name: known_corpus(getattr(config, name), task, name).fingerprint() for name in ("train", "queries")}
    directory = RunDirectory(made.run.url)
    directory.write_json("run.json", directory.read_json("run.json") | {"identity": known})


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    return make(tmp_path)
