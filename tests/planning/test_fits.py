"""Runs that fit in no way are said to, with what would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datainf_ray.influence.block import Block
from datainf_ray.planning.fits import heavy_blocks, too_large
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import expected_batch_tokens
from datainf_ray.request.job import Job
from tests.planning.test_sizing import GB, job

CPU, GPU = Room(1, 0, 10 * GB, 60 * GB, None), Room(1, 1, 10 * GB, 64 * GB, 80 * GB)


def with_saved_tables(of: Job, rows: int = 128_256, hidden: int = 4096) -> Job:
    """The job of an adapter that PEFT has saved the embeddings and the head with."""
    tables = tuple(Block(f"{name}.weight", "modules_to_save", (rows, hidden)) for name in ("lm_head", "model.embed"))
    return replace(of, facts=replace(of.facts, blocks=(*of.facts.blocks, *tables)))


@pytest.mark.parametrize("room", [CPU, GPU])
def test_what_fits_is_not_complained_of(room: Room) -> None:
    assert too_large(job("135M"), room) is None
    assert too_large(job("8B"), room) is None


def test_a_base_that_does_not_fit_by_itself() -> None:
    said = too_large(job("8B"), replace(CPU, worker_bytes=16 * GB))
    assert said is not None
    assert said.startswith("a worker's memory must be 3")
    assert "the base alone takes 32" in said
    assert "cluster.cpus_per_worker" in said
    on_gpu = too_large(job("8B"), replace(GPU, device_bytes=12 * GB))
    assert on_gpu is not None
    assert "GPU memory" in on_gpu
    assert "model.quantization" in on_gpu


def test_tables_that_were_saved_are_named_where_they_are_too_much() -> None:
    said = too_large(with_saved_tables(job("8B")), replace(CPU, worker_bytes=40 * GB))
    assert said is not None
    assert said.endswith(
        'with model.blocks: ["*", "!lm_head.weight", "!model.embed.weight"], which leaves out 100% of the parameters, '
        "it would fit"
    )
    assert too_large(with_saved_tables(job("8B")), replace(CPU, worker_bytes=60 * GB)) is None


def test_blocks_of_all_layers_count_together() -> None:
    blocks = [Block(f"model.layers.{k}.{name}.weight", "other", size) for k in range(4) for name, size in SIZES]
    assert heavy_blocks(blocks) == ["model.layers.*.mlp.weight", "model.layers.*.attention.weight"]


SIZES = (("norm", (10,)), ("attention", (30, 10)), ("mlp", (60, 10)))


def test_large_blocks_make_small_batches() -> None:
    large = with_saved_tables(job("135M"), 49_152, 576)
    assert expected_batch_tokens(job("135M"), CPU) == 1024
    budgets = [expected_batch_tokens(large, replace(CPU, worker_bytes=size * GB)) for size in (60, 12, 3)]
    assert budgets[0] == 1024 > budgets[1] > budgets[2] >= 32
    assert expected_batch_tokens(large, GPU) < expected_batch_tokens(job("135M"), GPU)
