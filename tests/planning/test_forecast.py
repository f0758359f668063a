"""What `plan` says of a run, and whether the run is like that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray import attribute, plan
from datainf_ray.common.words import byte_size
from datainf_ray.config import load_config
from datainf_ray.influence import exact
from datainf_ray.planning.calibration import Calibration
from datainf_ray.planning.estimate import activation_bytes
from datainf_ray.planning.forecast import forecast, render
from datainf_ray.planning.overhead import overhead_seconds
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import choose_groups
from datainf_ray.request.job import Job, prepare
from tests import tiny
from tests.runs_of import COMMAND

ROOM = Room(workers=3, gpus_per_worker=0, store_bytes=10**9, worker_bytes=10**9, device_bytes=None)


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    return tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")


def prepared(config: dict[str, Any], **settings: Any) -> Job:
    return prepare(load_config(config, **settings), writable=False)


def test_the_sweeps_are_those_of_the_method(config):
    def sweeps(**settings: Any) -> list[str]:
        return plan(config, **settings).sweeps

    assert sweeps() == ["queries", "pilot", "curvature", "scores"]
    assert sweeps(**{"method.name": "hessian-free"}) == ["queries", "scores"]
    sampled = ["queries", "moments", "moments", "curvature", "curvature", "scores"]
    assert sweeps(**{"method.curvature_rows": 20}) == sampled
    assert sweeps(**{"method.curvature_rows": 40}) == ["queries", "pilot", "curvature", "scores"]  # all rows


@pytest.mark.parametrize("method", [{"name": "exact"}, {"name": "lissa"}, {"name": "lissa", "scale": 1.0}])
def test_whose_curvature_it_is_is_told_of_every_method(config, method):
    for rows in (None, 20):
        text = " ".join(render(plan(config, method={**method, "curvature_rows": rows})).split())
        assert ("; the curvature is that of 20 random rows" in text) == (rows is not None)
        assert "random rows" not in text or rows is not None


def test_what_an_iteration_leaves_is_in_the_object_store_and_in_the_run_directory(config, monkeypatch):
    """x, s and p of every query in float64, before a step and behind it, and of LiSSA r."""

    def planned(**method: Any) -> Any:
        return forecast(prepared(config, method=method), room=ROOM)

    direct, given = planned(name="exact"), planned(name="lissa", iterations=3, scale=1.0)
    monkeypatch.setattr(exact, "SIDE", 4)
    iterated = planned(name="exact", iterations=3)
    vector = 4 * direct.queries * direct.parameters
    assert iterated.store_bytes - given.store_bytes == 8 * vector
    assert iterated.peak_output_bytes - direct.peak_output_bytes == 12 * vector
    narrow = planned(name="datainf")
    assert direct.peak_output_bytes - narrow.peak_output_bytes == vector  # vectors in float64 that rows are scored by


def test_vectors_in_float64_take_twice_the_room_on_a_device(config):
    def resident(method: str, share: float) -> bool:
        job = prepared(config, method={"name": method})
        state = 4 * job.queries * job.facts.parameters
        room = replace(ROOM, gpus_per_worker=1, device_bytes=int(state / (0.4 * share)), worker_bytes=10**12)
        return choose_groups(job, room, batch_tokens=1)[1]

    assert resident("datainf", 0.9)
    assert not resident("exact", 0.9)
    assert resident("exact", 0.45)


@pytest.mark.parametrize(
    ("dtype", "device_bytes", "told"),
    [
        ("float32", 10**9, None),
        ("auto", None, None),  # a CPU computes in float32 then
        (
            "auto",
            10**9,
            "the base computes in 16 bits, if its checkpoint does: against float32 that moved",
        ),
        ("bfloat16", None, "the base computes in bfloat16: against float32 that moved influences by 3 to 8 % in"),
        ("float16", 10**9, "the base computes in float16: against float32 that moved influences by 0.5 % in"),
    ],
)
def test_half_precision_is_told(config, dtype, device_bytes, told):
    room = replace(ROOM, device_bytes=device_bytes, gpus_per_worker=0 if device_bytes is None else 1)
    text = " ".join(render(forecast(prepared(config, **{"model.dtype": dtype}), room=room)).split())
    assert ("precision " in text) == (told is not None)
    assert told is None or f"precision {told}" in text


@pytest.mark.parametrize(
    ("arch", "method", "told"),
    [
        ("bert", "datainf", 2),
        ("roberta", "datainf", 2),
        ("bert", "hessian-free", 0),  # it divides by nothing
        ("llama-classifier", "datainf", 0),  # its keys are turned by their position, bias and all
    ],
)
def test_key_biases_are_told_beforehand(tmp_path, arch, method, told):
    bias = {"attention_bias": True} if arch.startswith("llama") else {}
    targets = ["q_proj", "k_proj"] if bias else ["query", "key"]
    model = tiny.save_model(tmp_path, arch, targets, lora={"bias": "lora_only"}, settings=bias)
    for name in ("train", "queries"):
        tiny.write_rows(tmp_path / f"{name}.jsonl", 4, seed=1, labels=3)
    expected = forecast(prepared(tiny.configuration(tmp_path, model, tmp_path / "run", method={"name": method})))
    assert sum(block.endswith(".bias") for block in expected.left_out) == len(expected.left_out) == told
    text = " ".join(render(expected).split())
    assert (f"all attributed, but probably 2 of {expected.blocks} blocks are left out" in text) == bool(told)
    short = render(expected.model_copy(update={"half_precision": "bfloat16"}))
    assert ("all attributed; 2 key biases (the first is " in " ".join(short.split())) == bool(told)


def test_queries_that_do_not_fit_at_once_take_a_curvature_sweep_for_each_group(config):
    job = prepared(config)
    little = Room(1, 0, 10**9, worker_bytes=2 * 4 * 4 * job.facts.parameters * 3, device_bytes=None)  # three queries
    got = forecast(job, room=little)
    assert got.groups == [(0, 2), (2, 4)]
    assert got.sweeps == ["queries", "pilot", "curvature", "curvature", "scores"]
    assert "in 2 groups" in render(got)
    assert got.flops < forecast(job, room=ROOM).flops * 1.5  # the second reads what the first kept
    recomputed = forecast(prepared(config, gradients="recompute"), room=little)
    one_group = forecast(prepared(config, gradients="recompute"), room=ROOM)
    assert recomputed.flops - one_group.flops == pytest.approx(4 * got.base_parameters * got.tokens, rel=0.05)


def test_kept_gradients_save_a_backward_pass_and_take_their_bytes_in_the_store(config):
    kept = forecast(prepared(config, gradients="keep"), room=ROOM)
    again = forecast(prepared(config, gradients="recompute"), room=ROOM)
    assert (kept.gradients, again.gradients) == ("keep", "recompute")
    assert again.flops - kept.flops == pytest.approx(4 * kept.base_parameters * kept.tokens)
    assert kept.store_bytes - again.store_bytes == 4 * 40 * kept.parameters
    assert "are kept for the second sweep: " in " ".join(render(kept).split())


def test_those_of_a_sample_take_the_bytes_of_its_rows_and_one_backward_pass_over_it(config):
    asked = {"method.name": "lissa", "method.curvature_rows": 20, "method.iterations": 3}
    kept = forecast(prepared(config, **asked), room=ROOM)
    again = forecast(prepared(config, gradients="recompute", **asked), room=ROOM)
    assert (kept.gradients, again.gradients) == ("keep", "recompute")
    saved = (4 + 3 - 1) * kept.tokens / 40 * 20  # four steps to the scale and three of the series, but for the first
    assert again.flops - kept.flops == pytest.approx(4 * kept.base_parameters * saved)
    assert kept.store_bytes - again.store_bytes == 4 * 20 * kept.parameters


def test_a_run_takes_what_a_calibrated_worker_would(config):
    job = prepared(config, gradients="recompute")
    measured = Calibration(tokens_per_second=10.0, worker_bytes=7 * 10**8, start_seconds=3.0, device="a GPU")
    got = forecast(job, measured, ROOM)
    products = 6 * 4 * got.parameters * 40 / got.tokens  # a token's part of the curvature's
    full = 4 * got.base_parameters + products
    # queries and pilot without products, the scores with a third of them
    swept = (got.query_tokens + got.tokens * got.sampled_rows / 40) * 4 * got.base_parameters / full
    swept += got.tokens * (1 + (full - products * 2 / 3) / full)
    assert got.chunks == 5  # of 8 rows for 3 workers: two rounds, in the second of which one is idle
    assert got.seconds == pytest.approx(3 + swept / 10 / 3 * 6 / 5, rel=0.002)
    assert "10 tokens/s, as measured on a GPU" in got.assumption
    assert 7 * 10**8 < got.worker_bytes < 7.1 * 10**8
    longer = forecast(job, Calibration(10.0, 7 * 10**8, 3.0, "a GPU", tokens_per_row=100.0), ROOM)
    assert longer.tokens == 40 * 100


def test_memory_grows_with_the_queries_sums_for_four_nodes(config):
    one, forty = prepared(config), prepared(config | {"queries": config["train"]})
    state = 4 * 36 * one.facts.parameters  # of 36 queries more; a chunk's sums wait to be sent while the next are made
    scores = 4 * 36 * 8
    more = forecast(forty, room=ROOM).worker_bytes - forecast(one, room=ROOM).worker_bytes
    assert more == pytest.approx(2 * 4 * state + scores, abs=2)
    measured = Calibration(1.0, 10**9, 1.0, "cpu")  # that had all queries and sums for two nodes in it
    more = forecast(forty, measured, ROOM).worker_bytes - forecast(one, measured, ROOM).worker_bytes
    assert more == pytest.approx((2 * 4 - 3) * state + scores, abs=2)
    room = Room(1, 1, 10**9, 10**10, device_bytes=8 * 10**10)
    assert forecast(forty, room=room).device_bytes - forecast(one, room=room).device_bytes == 5 * state + scores


def test_a_gpu_s_peak_is_stated_beside_the_host_s(config):
    room = Room(1, 1, 10**9, 10**10, device_bytes=8 * 10**10)
    got = forecast(prepared(config), room=room)
    assert got.device_bytes is not None
    assert f"and {byte_size(got.device_bytes)} of its GPU" in render(got)
    assert forecast(prepared(config), room=ROOM).device_bytes is None


def test_a_cluster_that_is_not_asked_is_assumed_and_that_is_said(config, monkeypatch):
    got = plan(config, **{"cluster.address": "ray://nowhere:1", "cluster.max_workers": 4})
    assert "4 workers with 64.0 GB of memory each and GPUs of 80.0 GB are assumed of the cluster" in got.assumption
    assert got.device_bytes is not None
    on_cpus = plan(config, **{"cluster.address": "ray://nowhere:1", "cluster.gpus_per_worker": 0})
    assert on_cpus.device_bytes is None
    assert "GPU" not in on_cpus.assumption
    assert "assumed" not in plan(config).assumption
    monkeypatch.setenv("RAY_ADDRESS", "ray://nowhere:1")
    assert "assumed" in plan(config).assumption


def test_transport_that_takes_long_is_said_with_what_would_be_better(config):
    config = config | {"queries": config["train"]}  # 40 queries
    by_hand = plan(config, **{"cluster.chunk_rows": 1, "cluster.batch_tokens": 60})
    better = plan(config, **{"cluster.chunk_rows": "auto", "cluster.batch_tokens": 60})
    assert by_hand.transport > 0.05
    assert by_hand.transport > 10 * better.transport
    assert by_hand.transport_why == f"more than 5%; cluster.chunk_rows: auto would take {better.chunk_rows} rows"
    assert "cannot be larger" in better.transport_why  # the corpus is small


def test_rows_that_cannot_be_used_or_are_cut_are_told(tmp_path, config):
    fine = {"rows": 40, "unusable": 0, "cut": 0, "problem": None, "merged": 0, "hints": ()}
    assert plan(config).model_dump()["looked"]["train"] == fine
    assert "rows seen" not in render(plan(config))
    with (tmp_path / "queries.jsonl").open("a") as file:
        file.write('{"prompt": "w1", "completion": null}\n')
    got = plan(config, **{"train.max_length": 6})
    assert got.looked["queries"].unusable == 1
    assert 0 < got.looked["train"].cut < 40
    told = " ".join(render(got).split())
    assert f"of the 40 training rows that were looked at {got.looked['train'].cut} are longer than max_length" in told
    assert "1 cannot be used (the first is queries.jsonl#4: unreadable: completion is null)" in told


def test_an_index_takes_its_bytes(config):
    plain = plan(config)
    assert plain.index_bytes == 0
    whole, projected = (plan(config, index=True, index_projection=side) for side in (None, 4))
    assert whole.index_bytes > 2 * 40 * plain.parameters
    assert projected.index_bytes < whole.index_bytes
    assert f"index         {byte_size(whole.index_bytes)}" in render(whole)
    assert "\nindex" not in render(plain)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method.name": "hessian-free", "index": True},
        {"method.curvature_rows": 20},
        {"cluster.address": "ray://x:1"},
        {"cluster.chunk_rows": 1},
        {"gradients": "recompute"},
    ],
    ids=str,
)
def test_a_plan_fits_a_hundred_columns(config, settings):
    got = plan(config | {"output": "/r"}, **settings)
    lines = render(got).splitlines()
    assert max(map(len, lines)) <= 100
    for line in lines:
        assert line[14] != " "
        assert line[:13].strip() == "" or line[13] == " "
    small = Room(8, 1, 10**6, 10**5, 10**6)
    assert max(map(len, render(forecast(prepared(config | {"output": "/r"}), room=small)).splitlines())) <= 100


def test_the_output_s_peak_is_chunks_and_parts_together(config):
    got = plan(config | {"train": config["train"], "queries": config["train"], "output": "/r"})
    assert got.peak_output_bytes > got.output_bytes + 40 * 4 * 40  # the scores once more
    said = " ".join(render(got).split())
    assert f"{byte_size(got.output_bytes)} in 1 part at /r; up to {byte_size(got.peak_output_bytes)} before the" in said


def test_a_tiny_model_s_time_is_that_of_its_batches_blocks_and_rows(tmp_path, config):
    tiny.write_rows(tmp_path / "train.jsonl", 100_000, seed=1)
    job = prepared(config, **{"cluster.chunk_rows": 125, "cluster.batch_tokens": 1024})

    def swept(job: Job, batch_tokens: int = 1024, **which: Any) -> float:
        settings = {"backward": True, "on_gpu": False} | which
        return overhead_seconds(job, "train", job.rows, 125, batch_tokens, **settings)

    assert 30 < swept(job) < 120  # as seen: 0.5 to 0.8 ms a row on an idle core
    assert swept(job, 60) > 1.5 * swept(job)  # a batch for every three rows
    assert swept(job, backward=False) < 0.3 * swept(job)
    assert swept(job, on_gpu=True) < swept(job)
    deeper = prepared(config | {"model": tiny.save_model(tmp_path / "b", "llama", settings={"num_hidden_layers": 8})})
    assert 2 < swept(deeper) / swept(job) < 4
    got = forecast(job, room=Room(1, 0, 10**9, 10**9, None))
    assert got.seconds > 10 + swept(job) + swept(job, backward=False)
    assert got.seconds - forecast(job, room=Room(2, 0, 10**9, 10**9, None)).seconds > swept(job) / 3


def test_a_large_model_s_time_is_its_arithmetic(config):
    job = prepared(config, **{"cluster.batch_tokens": 16384, "cluster.chunk_rows": 4096})
    big = replace(job.facts, base_parameters=7 * 10**9)
    long = [replace(example, lengths=(1000,)) for example in job.examples["train"]]
    large = replace(job, facts=big, examples=job.examples | {"train": long})
    got = forecast(large, room=Room(1, 1, 10**9, 10**10, device_bytes=8 * 10**10))
    assert got.seconds - 10 == pytest.approx(got.flops / 150e12, rel=0.05)


def test_ten_million_rows_in_a_thousand_files_are_planned_in_seconds(tmp_path, config):
    (tmp_path / "rows").mkdir()
    first = tmp_path / "rows" / "0000.parquet"
    pq.write_table(pa.table({"text": ["w1 w2 w3"] * 10_000}), first, row_group_size=1000)
    for k in range(1, 1000):
        os.link(first, tmp_path / "rows" / f"{k:04d}.parquet")
    rows = {"path": str(tmp_path / "rows" / "*.parquet")}
    began = time.process_time()
    got = plan(config | {"train": rows, "cluster": {}, "queries": rows | {"path": str(first), "group": "all"}})
    assert time.process_time() - began < 20
    assert got.rows == 10_000_000
    assert got.sampled_rows == 1024
    assert got.chunks == -(-10_000_000 // got.chunk_rows)
    assert 6 * 10**8 < got.driver_bytes < 8 * 10**8


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("settings", [{}, {"method.curvature_rows": 20, "gradients": "recompute"}], ids=str)
def test_a_run_is_as_planned(tmp_path, config, settings):
    tiny.write_rows(tmp_path / "train.jsonl", 400, seed=1)
    config = config | {"cluster": {"max_workers": 1}, "index": True}
    expected = plan(config, **settings)
    run = attribute(config, progress=False, **settings)
    sizes = run.summary()["sizes"]
    assert [s.name for s in run.record.sweeps] == expected.sweeps
    assert sizes["gradients"] == expected.gradients
    assert (sizes["chunk_rows"], sizes["batch_tokens"]) == (expected.chunk_rows, expected.batch_tokens)
    assert [tuple(group) for group in sizes["groups"]] == expected.groups
    counts = run.summary()
    assert (counts["rows"], counts["queries"], counts["blocks"]) == (expected.rows, expected.queries, expected.blocks)
    assert counts["tokens"] == pytest.approx(expected.tokens, rel=0.2)
    written = dict.fromkeys(("index", "examples"), 0)
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and file.parent.name in written:
            written[file.parent.name] += file.stat().st_size
    assert 0.5 < (written["examples"] + (tmp_path / "run" / "top.parquet").stat().st_size) / expected.output_bytes < 2
    assert 0.5 < written["index"] / expected.index_bytes < 2


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_driver_takes_what_is_planned(tmp_path, config):
    """A process of its own with a Ray of its own, as a user's."""
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    expected = plan(config)
    driver = subprocess.Popen([*COMMAND, "run", str(tmp_path / "c.yaml")], stderr=subprocess.PIPE)
    peak = 0
    while driver.poll() is None:
        with suppress(OSError):  # it has just ended
            seen = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{driver.pid}/status").read_text())
            peak = max(peak, int(seen[1]) * 1024 if seen else 0)
        time.sleep(0.1)
    assert driver.returncode == 0
    assert 0.7 < peak / expected.driver_bytes < 1.3


WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_hidden_layers": 6}
LLAMA = WIDE | {"intermediate_size": 704, "head_dim": 32, "num_key_value_heads": 8}
ACTIVATIONS = {
    "attention": ("llama", None, LLAMA),
    "all layers": ("llama", "all-linear", LLAMA),
    "few heads": ("llama", None, LLAMA | {"intermediate_size": 896, "num_key_value_heads": 2}),
    "encoder": ("bert", None, WIDE | {"intermediate_size": 1024}),
}
MEASURE = """
import json, sys, torch
from datainf_ray.config import ModelConfig
from datainf_ray.model.load import load_replica
from datainf_ray.tasks.register import task_of
torch.set_num_threads(1)
model = ModelConfig(**json.loads(sys.argv[1]))
task = task_of(model)
replica = load_replica(model, task)
def peak(rows, length):
    replica.gradients(task.trial_batch(rows * length, length, 60), lambda *a: None)
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024  # ru_maxrss would be the parent's, if that has more
before = peak(1, 8)
print(peak(24, 60) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(  # the other shapes repeat what the first and the last one show
    "case", [pytest.param(c, marks=() if c in ("all layers", "encoder") else pytest.mark.slow) for c in ACTIVATIONS]
)
def test_a_batch_s_memory_is_estimated_within_a_factor_of_two(tmp_path, case):
    arch, targets, settings = ACTIVATIONS[case]
    model = tiny.save_model(tmp_path, arch, targets, settings=settings)
    labels = 3 if arch == "bert" else None
    for name in ("train", "queries"):
        tiny.write_rows(tmp_path / f"{name}.jsonl", 4, seed=1, labels=labels)
    job = prepared(tiny.configuration(tmp_path, model, tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(model)], capture_output=True, text=True, check=True, timeout=300
    )
    seen = int(done.stdout.split()[-1])
    assert seen > 50 * 10**6
    assert 0.5 < activation_bytes(job, 24 * 60, on_gpu=False) / seen < 2
