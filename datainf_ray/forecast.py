"""What a run would take, before anything is started: `plan`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from datainf_ray.config import RunConfig, load_config
from datainf_ray.job import Job, prepare
from datainf_ray.runs.schemas import OK

_GPU_FLOPS = 150e12  # a present GPU in bfloat16 at the share of its peak that training reaches
_SWEEPS = {"datainf": ("moments", "curvature", "scores"), "hessian-free": ("scores",)}


class Plan(BaseModel):
    """What a run is expected to take. Bytes and seconds are estimates; rows, blocks, chunks and sweeps are exact."""

    model_config = ConfigDict(frozen=True)

    rows: int
    query_rows: int
    queries: int
    tokens: int = Field(description="of the training rows, estimated from the first of them")
    query_tokens: int
    blocks: int
    parameters: int = Field(description="trainable, in all blocks")
    base_parameters: int
    chunks: int
    sweeps: list[str]
    workers: int = Field(description="that the estimate of the time is for")
    worker_bytes: int = Field(description="peak memory of a worker: model, activations of a batch, accumulators")
    driver_bytes: int = Field(description="peak memory of the driver beyond Python and its libraries")
    store_bytes: int = Field(description="in the object store at a time")
    output_bytes: int
    flops: float = Field(description="floating-point operations of all sweeps")
    seconds: float
    assumption: str = Field(description="what the seconds rest on")
    output: str


def plan(config: str | Path | dict[str, Any] | RunConfig, **overrides: Any) -> Plan:
    """What a run of this configuration would take. Reads metadata and a few rows; touches no GPU and starts nothing.

    Raises `RequestError` for everything that `attribute` would refuse before it starts a worker.
    """
    return forecast(prepare(load_config(config, **overrides), writable=False))


def forecast(job: Job) -> Plan:
    config, facts, m = job.config, job.facts, job.queries
    rows = {name: corpus.rows for name, corpus in job.corpora.items()}
    tokens = {name: round(_mean_tokens(job, name) * rows[name]) for name in rows}
    sweeps = _SWEEPS[config.method.name]
    state = 4 * m * facts.parameters  # one float32 vector per query
    workers = config.cluster.max_workers or max((os.cpu_count() or 1) // config.cluster.cpus_per_worker, 1)
    workers = min(workers, len(job.chunks("train")))

    # Forward 2 operations per parameter and token, backward through the activations as many; the base's own weights
    # get no gradient. The folds multiply each row's gradients with every query's, twice in the curvature sweep.
    passes = len(sweeps) * tokens["train"] + tokens["queries"]
    products = (3 if config.method.name == "datainf" else 1) * 2 * rows["train"] * m * facts.parameters
    flops = 4.0 * facts.base_parameters * passes + products
    on_gpu = bool(config.cluster.address or os.environ.get("RAY_ADDRESS")) and config.cluster.gpus_per_worker != 0
    if on_gpu:
        rate = _GPU_FLOPS * max(config.cluster.gpus_per_worker or 1, 1)
        said = f"{workers} worker(s) at {rate / 1e12:.0f} Tflop/s, a GPU of today in bfloat16"
    else:
        rate = _cpu_flops(config.cluster.cpus_per_worker)
        said = f"{workers} worker(s) at {rate / 1e9:.0f} Gflop/s, half of what a matrix product reaches on this CPU"

    chunk_rows = min(config.cluster.chunk_rows, rows["train"])
    vectors = 3 if config.method.name == "datainf" else 1  # queries, sums and the sums of a chunk on its way
    batch = max(config.cluster.batch_tokens, round(_mean_tokens(job, "train")))
    # a token's activations that wait for the backward pass: about 20 vectors a layer, and the logits in float32
    layers = max(facts.base_parameters // max(12 * facts.hidden_size**2, 1), 1)
    activations = 4 * batch * (20 * facts.hidden_size * min(layers, 200))
    if config.model.task == "causal-lm":
        activations += 3 * 4 * batch * facts.vocabulary
    weight = {"bfloat16": 2, "float16": 2}.get(config.model.dtype, 2 if on_gpu and config.model.dtype == "auto" else 4)
    if config.model.quantization:
        weight = 1
    scores = 4 * m * rows["train"] if config.results.scores else 0
    if config.results.blocks:
        scores *= 1 + len(facts.blocks)
    return Plan(
        rows=rows["train"],
        query_rows=rows["queries"],
        queries=m,
        tokens=tokens["train"],
        query_tokens=tokens["queries"],
        blocks=len(facts.blocks),
        parameters=facts.parameters,
        base_parameters=facts.base_parameters,
        chunks=len(job.chunks("train")),
        sweeps=["queries", *sweeps],
        workers=workers,
        worker_bytes=weight * facts.base_parameters + activations + vectors * state + 4 * m * chunk_rows,
        driver_bytes=2 * min(state, 32 * 2**20) + 8 * rows["queries"],
        store_bytes=state * (3 + 2 * workers),
        output_bytes=scores + 40 * rows["train"],
        flops=flops,
        seconds=flops / (rate * workers),
        assumption=said,
        output=job.directory.url,
    )


def _mean_tokens(job: Job, name: str) -> float:
    usable = [example.tokens for example in job.examples[name] if example.status == OK]
    return sum(usable) / max(len(job.examples[name]), 1)


def _cpu_flops(threads: int) -> float:
    """Half the speed of a float32 matrix product on `threads` threads of this machine, measured for a moment."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.ones(512, 512), torch.ones(512, 512)
        a @ b
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.1:
            a @ b
            count += 1
        return count * 2 * 512**3 / (time.perf_counter() - began) / 2
    finally:
        torch.set_num_threads(before)


def render(expected: Plan) -> str:
    """The plan as lines for a person."""
    lines = {
        "rows": f"{expected.rows:,}, about {expected.tokens:,} tokens, in {expected.chunks:,} chunks",
        "queries": f"{expected.queries:,} from {expected.query_rows:,} rows, about {expected.query_tokens:,} tokens",
        "model": f"{expected.base_parameters:,} parameters, of which none gets a gradient",
        "adapter": f"{expected.blocks:,} blocks with {expected.parameters:,} parameters, all attributed",
        "sweeps": f"{len(expected.sweeps)}: {', '.join(expected.sweeps)}",
        "memory": f"{_bytes(expected.worker_bytes)} a worker, {_bytes(expected.driver_bytes)} in the driver",
        "object store": f"{_bytes(expected.store_bytes)} at a time",
        "output": f"{_bytes(expected.output_bytes)} at {expected.output}",
        "work": f"{expected.flops:.2g} floating-point operations",
        "time": f"about {_time(expected.seconds)}: {expected.assumption}",
    }
    return "\n".join(f"{name:<13} {text}" for name, text in lines.items())


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
