"""Run directories with known numbers, written with the package's own functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from datainf_ray.config import load_config
from datainf_ray.corpus.passages import Passage, as_json, pair
from datainf_ray.runs.checkpoints import remove_checkpoints
from datainf_ray.runs.checksums import stored, table_file
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.parts import chunk_name, consolidate, part_name
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.schemas import ACROSS, across, blocks_schema, examples_schema, queries_schema, vectors
from datainf_ray.runs.texts import TEXTS, texts_of_queries, texts_of_rows
from datainf_ray.runs.top import merge_top, select_top, top_table
from tests.runs_of import write_table


@pytest.fixture(params=["local", "file", "memory", pytest.param("s3", marks=pytest.mark.cluster)])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    """An empty run directory in every kind of place."""
    if request.param == "s3":
        return RunDirectory(request.getfixturevalue("bucket") + "/a/run")
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return RunDirectory("memory://a/run")
    return RunDirectory(("file://" if request.param == "file" else "") + str(tmp_path / "a" / "run"))


FINGERPRINT = "4f" * 32  #: of fabricated runs


@dataclass
class Made:
    """A fabricated run, and the numbers that went into it."""

    run: Run
    influence: np.ndarray  # (rows × queries), NaN where there is no score
    ids: list[str]
    previews: list[str]


def make_run(
    url: str,
    rows: int = 200,
    queries: int = 3,
    *,
    previews: list[str] | None = None,
    query_previews: list[str] | None = None,
    query_status: list[str] | None = None,
    influence: np.ndarray | None = None,
    missing: np.ndarray | None = None,
    selves: np.ndarray | None = None,
    ids: list[str] | None = None,
    predicted: list[str | None] | None = None,
    passages: list[list[Passage]] | None = None,
    chunk: int = 64,
    state: str = "done",
    results: dict[str, Any] | None = None,
    path: Any = "s3://b/sft/*.parquet",
    queries_path: str = "eval.jsonl",
    queries_are: str | None = None,
    method: dict[str, Any] | None = None,
    task: str = "causal-lm",
    **document: Any,
) -> Made:
    """A run directory at `url` as the main job leaves it; every tenth row has no score, or those that are `missing`.

    `selves` are the rows' influences on themselves, which have a tenth of that as their error, `predicted` what the
    model predicts for each row, and `passages` what each says where that is not in the preview. A run that is done has
    a part for every chunk, another the chunks' files. `document` are more keys of run.json.
    """
    config = load_config(
        {
            "model": {"base": "org/base", "adapter": "s3://b/adapter", "task": task},
            "train": {"path": path},
            "queries": {"path": queries_path, "are": queries_are},
            "method": method or {},
            "results": {"top_k": 20, "self_influence": selves is not None, **(results or {})},
            "output": url,
        }
    )
    draw = np.random.default_rng(7)
    if influence is None:
        influence = (draw.standard_t(3, size=(rows, queries)) * 1e-5).astype(np.float32)
    missing = np.arange(rows) % 10 == 9 if missing is None else missing
    influence[missing] = np.nan
    ids = ids or [f"sft-{r // chunk:02d}.parquet#{r % chunk}" for r in range(rows)]
    previews = previews or [f"question {r} ⟶ answer {r}" for r in range(rows)]
    status = np.where(missing, "no_target_tokens", "ok")
    directory = RunDirectory(url)
    best, files = None, {}
    for number, start in enumerate(range(0, rows, chunk)):
        part = slice(start, min(start + chunk, rows))
        row = np.arange(part.start, part.stop)
        columns = {
            "row": row,
            "id": ids[part],
            "tokens": np.full(len(row), 12, np.int32),
            "tokens_cut": np.where(row % 4 == 0, 5, 0).astype(np.int32),
            "loss": pa.array(draw.uniform(0.5, 3, len(row)), pa.float32(), mask=missing[part]),
            "sqnorm": pa.array(draw.uniform(1, 9, len(row)), pa.float32(), mask=missing[part]),
            "status": status[part],
            "detail": pa.array(np.where(missing[part], "nothing to predict", None), pa.string()),
            "influence": vectors(influence[part], missing[part]),
        }
        columns |= dict(zip(ACROSS, across(influence[part], missing[part]), strict=True))
        if config.results.self_influence:
            own = -draw.uniform(1, 9, len(row)) if selves is None else selves[part]
            columns["self_influence"] = pa.array(own, pa.float32(), mask=missing[part])
            columns["self_influence_error"] = pa.array(np.abs(own) / 10, pa.float32(), mask=missing[part])
        said_of = predicted or [None] * rows
        columns["predicted"] = pa.array(said_of[part], pa.string(), mask=missing[part])
        schema = examples_schema(queries, config.results.scores, selves=config.results.self_influence)
        schema = schema.with_metadata({"datainf.moments": f"{number}"})
        table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        directory.commit(chunk_name(number), table_file(table, FINGERPRINT, chunk_name(number)))
        if state == "done":
            files[part_name(number)] = consolidate(directory, number, range(number, number + 1), FINGERPRINT)
        said = [as_json(pair(*line.split(" ⟶ "))) if " ⟶ " in line else None for line in previews[part]]
        if passages is not None:
            said = [as_json(each) for each in passages[part]]
        texts = pa.table({"row": row, "id": ids[part], "preview": previews[part], "text": pa.array(said, pa.string())})
        top = select_top(influence[part], row, texts, config.results.top_k)
        best = top if best is None else merge_top(best, top)
    if state == "done":
        remove_checkpoints(directory)
    query_status = query_status or ["ok"] * queries
    write_table(
        directory,
        "queries.parquet",
        pa.table(
            {
                "query": range(queries),
                "id": [f"eval.jsonl#{q}" for q in range(queries)],
                "rows": [int(s == "ok") for s in query_status],
                "tokens": [30 + q for q in range(queries)],
                "loss": [1.5 + q if s == "ok" else None for q, s in enumerate(query_status)],
                "preview": query_previews or [f"asked {q} ⟶ said {q}" for q in range(queries)],
                "status": query_status,
            },
            schema=queries_schema(),
        ),
    )
    names = [f"layers.{n}.q_proj.lora_{side}" for n in range(12) for side in "AB"]
    write_table(
        directory,
        "blocks.parquet",
        pa.table(
            {
                "block": names,
                "kind": ["lora_A" if n.endswith("A") else "lora_B" for n in names],
                "shape": [[8, 384] if n.endswith("A") else [384, 8] for n in names],
                "size": [8 * 384] * len(names),
                "damping": draw.uniform(1e-7, 1e-5, len(names)),
                "mean_sqnorm": draw.uniform(0.01, 1, len(names)),
                "smallest_sqnorm": draw.uniform(1e-3, 1e-2, len(names)),
                "nodes": [[1e-6, 2e-6]] * len(names),
                "error_bound": draw.uniform(0, 1e-9, len(names)),
                "left_out": [False] * len(names),
                "residual": [None] * len(names),
            },
            schema=blocks_schema(),
        ),
    )
    write_table(directory, "top.parquet", top_table(best))
    asked = query_previews or [f"asked {q} ⟶ said {q}" for q in range(queries)]
    said = [as_json(pair(*line.split(" ⟶ "))) if " ⟶ " in line else None for line in asked]
    names_of_queries = [f"eval.jsonl#{q}" for q in range(queries)]
    texts = [texts_of_rows(best.texts), texts_of_queries(list(range(queries)), names_of_queries, said)]
    write_table(directory, TEXTS, pa.concat_tables(texts))
    for name in ("queries.parquet", "blocks.parquet", "top.parquet", TEXTS):
        files[name] = stored(directory.read(name))
    scored = int((~missing).sum())
    sweep = {"source": "backward", "tokens": rows * 12, "examples": rows, "workers": 2}
    directory.write_json(
        "run.json",
        {
            "format": 1,
            "state": state,
            "config": config.model_dump(mode="json"),
            "fingerprint": FINGERPRINT,
            "versions": {"datainf_ray": "0.1.0", "torch": "2.9.0", "ray": "2.50.0", "python": "3.11.7"},
            "sign": "positive influence: upweighting the row raises the query's loss (harmful); negative: helpful",
            "created": "2026-01-02T03:04:05+00:00",
            "finished": "2026-01-02T03:14:25+00:00" if state == "done" else None,
            "seconds": 620.5,
            "counts": {
                "rows": rows,
                "tokens": rows * 12,
                "queries": queries,
                "blocks": len(names),
                "parameters": 8 * 384 * len(names),
                "status": {"ok": scored, "no_target_tokens": rows - scored},
            },
            "trainable": {"attributed": 8 * 384 * len(names), "total": 8 * 384 * len(names)},
            "device": "cpu",
            "sweeps": [
                {**sweep, "name": "queries", "examples": queries, "tokens": 99, "seconds": 0.4},
                {**sweep, "name": "moments", "seconds": 203.2},
                {**sweep, "name": "curvature", "seconds": 204.0},
                {**sweep, "name": "scores", "seconds": 210.1},
            ],
            "files": {name: known.model_dump() for name, known in files.items()} if state == "done" else {},
            "reason": "the cluster went away" if state == "failed" else None,
            **document,
        },
    )
    return Made(open_run(url), influence, ids, previews)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Made]:
    """`make_run`, in a new local directory unless a URL is given."""
    return lambda *args, url=None, **kwargs: make_run(url or str(tmp_path / "run"), *args, **kwargs)
