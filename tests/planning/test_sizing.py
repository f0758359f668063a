from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.block import Block
from datainf_ray.influence.datainf import pilot_rows
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import (
    CPU_FLOPS,
    GPU_FLOPS,
    choose_chunk_rows,
    choose_gradients,
    choose_groups,
    choose_query_rows,
    choose_sizes,
    equal_rows,
    expected_batch_tokens,
    held_bytes,
    transport_share,
)
from datainf_ray.request.job import Job
from datainf_ray.runs.directory import RunDirectory

GB = 10**9
#: hidden size, layers, parameters, and those of an adapter: a toy, the peers' workload, 135M, 8B narrow and wide
MODELS = {
    "toy": (32, 2, 40_000, 2_000),
    "small": (256, 6, 5_900_000, 49_152),
    "135M": (576, 30, 135_000_000, 460_800),
    "8B": (4096, 32, 8_000_000_000, 3_400_000),
    "8B, all layers": (4096, 32, 8_000_000_000, 42_000_000),
}


def job(model: str = "small", rows: int = 600, queries: int = 50, tokens: int = 55, **settings: Any) -> Job:
    """A job over files that are not there: enough to choose sizes for."""
    hidden, layers, parameters, trainable = MODELS[model]
    blocks = tuple(
        Block(f"model.layers.{k}.q_proj.lora_A.weight", "lora_A", (trainable // layers // hidden, hidden))
        for k in range(layers)
    )
    facts = ModelFacts(blocks, parameters, hidden_size=hidden, vocabulary=2048)
    keys = {
        "model": {"base": "b", "adapter": "a"},
        "train": {"path": "t"},
        "queries": {"path": "q"},
        "output": "/o",
    }
    corpora = {
        name: Corpus((SourceFile("f", "f", "jsonl", None, 1, "", rows=n),), "text", {}, None, None, n)
        for name, n in (("train", rows), ("queries", queries))
    }
    example = Example(0, "", "ok", lengths=(tokens,))
    return Job(
        load_config(keys, **settings),
        RunDirectory("/o"),
        facts,
        corpora,
        {"train": [example], "queries": [example]},
        np.arange(queries),
        None,
    )


def cpu(workers: int = 2, store: int = 8 * GB, memory: int = 8 * GB) -> Room:
    return Room(workers, 0, store, memory, None)


def gpu(device: int = 80 * GB, memory: int = 64 * GB) -> Room:
    return Room(8, 1, 100 * GB, memory, device)


def test_the_pilot_is_a_32nd_of_the_rows_between_16_and_1024():
    assert [pilot_rows(n) for n in (1, 16, 100, 600, 3200, 10**6)] == [1, 16, 16, 18, 100, 1024]


@pytest.mark.parametrize("gpus", [0, 1, 2])  # two are as fast as one
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("queries", [1, 100, 10_000])
@pytest.mark.parametrize("rows", [1, 17, 600, 100_000, 10**8])
def test_chunks_are_within_their_bounds_and_their_statistics_travel_briefly(model, rows, queries, gpus):
    one = job(model, rows, queries, tokens=200)
    got = choose_chunk_rows(one, gpus, 2048)
    assert min(rows, 16) <= got <= 16384
    p, d = one.facts.base_parameters, one.facts.parameters
    computing = (4 * p * 200 + 6 * queries * d) / (GPU_FLOPS if gpus else CPU_FLOPS)  # two nodes: 2 + 2·2 products
    travelling = 2 * 4 * queries * d / 0.5e9
    share = transport_share(one, gpus, got)
    np.testing.assert_allclose(share, travelling / (got * computing), rtol=1e-12)
    bounds = {"rows": 16384, "seconds": 600 / computing, "scores": 128e6 / (4 * queries), "corpus": rows, "least": 16}
    room = min(bounds["rows"], bounds["seconds"], bounds["scores"], bounds["corpus"])
    if share > 0.05 * (1 + 1e-9):  # as large as it may be, but for making chunks equal
        assert got >= min(0.93 * room, rows) or got == 16
    if got > 16:
        assert got * computing <= 600
        assert got * 4 * queries <= 128e6
    longest = max(30, 1.07 * 2048 / 200 * computing, travelling / 0.05)  # seconds that there is a reason for
    if got > 17:
        assert (got - 1) * computing <= longest


def test_a_small_corpus_is_cut_for_workers_to_share_and_a_large_one_by_time():
    assert choose_chunk_rows(job(rows=12_800, tokens=50, queries=1), 0, 500) == 200
    large = job("135M", rows=10**6, tokens=100, queries=1)
    assert choose_chunk_rows(large, 0, 100) == 33  # 0.9 s a row
    assert choose_chunk_rows(large, 1, 100) == pytest.approx(10**6 / 64, rel=0.001)  # 0.5 ms a row
    assert choose_chunk_rows(job("8B", rows=10**6, tokens=100, queries=1), 1, 100) == pytest.approx(937, rel=0.001)


def test_a_chunk_holds_a_full_batch():
    assert choose_chunk_rows(job(rows=10_000, tokens=50, queries=1), 0, 20_000) == 400
    assert choose_chunk_rows(job("135M", rows=10_000, tokens=50, queries=1), 1, 10**6) == 656  # 32768 tokens are enough
    assert choose_chunk_rows(job(rows=20_000, tokens=50, queries=1), 0, 2000) == pytest.approx(20_000 / 64, rel=0.01)


def test_chunks_are_equal_even_in_number_and_have_rows_of_like_length_to_choose_from():
    assert choose_chunk_rows(job(rows=600, tokens=50, queries=1), 0, 1024) == 100
    assert choose_chunk_rows(job(rows=100, tokens=50, queries=1), 0, 1024) == 100
    assert [equal_rows(n, 16) for n in (1, 16, 17, 33, 50, 64, 65)] == [1, 16, 9, 9, 13, 16, 11]


def test_chunks_do_not_depend_on_the_number_of_workers_or_their_memory():
    one = job("135M", rows=10_000)
    rooms = (cpu(), cpu(workers=100), cpu(store=10**12, memory=10**12))
    assert len({choose_sizes(one, room, 2048).chunk_rows for room in rooms}) == 1


def test_the_index_and_scores_and_kept_gradients_bound_a_chunk():
    wide = {"model": "8B, all layers", "rows": 10**6, "queries": 1, "tokens": 20}
    free = choose_chunk_rows(job(**wide), 1, 64)
    indexed = choose_chunk_rows(job(**wide, index=True, index_projection=64), 1, 64)
    size = 32 * 64 * 64 * 2 + 32 * 12  # 64 × 64 float16 a block, a squared norm and a scale
    assert free > 0.9 * 256e6 / size > 0.8 * indexed
    assert 0.95 * 256e6 < indexed * size <= 256e6
    kept = choose_chunk_rows(job(rows=10**6, gradients="keep", tokens=1), 0, 2**20)
    assert 0.95 * 2**30 < kept * 4 * job().facts.parameters <= 2**30
    many = choose_chunk_rows(job("toy", rows=10**6, queries=10_000), 1, 64)
    by_block = choose_chunk_rows(job("toy", rows=10**6, queries=10_000, **{"results.blocks": True}), 1, 64)
    assert (many, by_block) == (3200, 1066)  # 128 MB of 40 kB and of 120 kB


def test_sizes_that_are_given_are_taken():
    given = job(rows=10**6, **{"cluster.chunk_rows": 7, "cluster.batch_tokens": 99})
    assert choose_sizes(given, cpu(), 99).chunk_rows == 7
    assert expected_batch_tokens(given, gpu()) == 99


def test_queries_are_shared_by_workers_and_a_chunk_of_them_has_gradients_of_256_megabytes_at_most():
    assert choose_query_rows(job(), 100) == 13  # four chunks of the fifty
    assert choose_query_rows(job(queries=6400), 10_000) == 100
    assert choose_query_rows(job(queries=6400), 70) == 70
    assert 0.99 * 256e6 < choose_query_rows(job(queries=10**6), 10_000) * 4 * 49_152 <= 256e6
    assert choose_query_rows(job("8B, all layers"), 100) == 1


@pytest.mark.parametrize("queries", [1, 7, 100, 1000])
@pytest.mark.parametrize("room", [cpu(memory=GB), cpu(memory=50 * GB), gpu(), gpu(10 * GB, 10 * GB)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_groups_cover_all_queries_in_order_and_their_sums_fit(model, room, queries):
    one = job(model, queries=queries)
    groups, resident = choose_groups(one, room, 2048)
    assert [k for group in groups for k in range(*group)] == list(range(queries))
    sizes = [last - first for first, last in groups]
    assert max(sizes) - min(sizes) <= 1
    each = 4 * max(sizes) * one.facts.parameters
    if max(sizes) > 1:
        if resident and room.device_bytes:
            assert (1 + 4) * each <= 0.4 * room.device_bytes
        else:
            assert 4 * each <= room.worker_bytes / 2
    if resident and room.device_bytes:
        assert 4 * queries * one.facts.parameters <= 0.4 * room.device_bytes  # the scores take all queries' vectors


def test_one_group_where_all_fit_and_no_more_groups_than_needed():
    state = 4 * 50 * 49_152
    assert choose_groups(job(), cpu(memory=2 * 4 * state), 2048) == (((0, 50),), True)
    assert choose_groups(job(), cpu(memory=2 * 4 * state - 8), 2048) == (((0, 25), (25, 50)), True)
    assert choose_groups(job(), gpu(math.ceil(5 * state / 0.4)), 2048) == (((0, 50),), True)
    assert choose_groups(job(queries=3), cpu(memory=1), 2048)[0] == ((0, 1), (1, 2), (2, 3))
    assert choose_groups(job("8B, all layers", queries=90, **{"method.name": "hessian-free"}), gpu(), 2048) == (
        ((0, 90),),
        True,
    )


def test_queries_are_moved_where_that_costs_less_than_another_sweep():
    one = job("8B, all layers", queries=50)  # 8.4 GB; with sums for four nodes 42, for which the GPU has 32
    assert choose_groups(one, gpu(memory=200 * GB), 65_536) == (((0, 50),), False)  # 25 GB moved, a batch takes 21 s
    assert choose_groups(one, gpu(memory=200 * GB), 2048) == (((0, 25), (25, 50)), True)  # 0.7 s
    assert choose_groups(one, gpu(10 * GB, memory=200 * GB), 2048)[1] is False  # not even the queries fit


def test_gradients_are_kept_where_they_fit_into_half_of_the_store_beside_the_queries():
    kept, queries = 600 * 49_152 * 4, 4 * 50 * 49_152 * 4
    room = cpu(store=2 * (kept + queries))
    assert choose_gradients(job(), room, 36)[0] == "keep"
    assert choose_gradients(job(), cpu(store=room.store_bytes - 2), 36)[0] == "recompute"
    assert choose_sizes(job(), cpu(), 2048).why == (
        "gradients are kept for the second sweep: 118.0 MB fit into 4.0 GB, half of the object store less the queries' "
        "part"
    )
    too_large = choose_gradients(job(rows=60_000), cpu(), 36)
    assert too_large[1].startswith("gradients are computed in both sweeps: 11.8 GB do not fit into 4.0 GB")
    assert choose_gradients(job(), cpu(), 5461)[0] == "keep"
    assert choose_gradients(job(), cpu(), 5462) == (
        "recompute",
        "gradients are computed in both sweeps: 1.1 GB in a chunk of 5,462 rows are more than 1.1 GB",
    )


def test_gradients_are_not_kept_where_nothing_would_read_them_or_nobody_wants_them():
    for settings in ({"method.name": "hessian-free"}, {"method.name": "exact", "method.curvature_rows": 100}):
        assert choose_gradients(job(gradients="keep", **settings), cpu(), 36)[0] == "recompute"
    assert choose_gradients(job(**{"method.curvature_rows": 600}), cpu(), 36)[0] == "keep"  # all rows: no sample
    assert choose_gradients(job(gradients="recompute"), cpu(), 36)[0] == "recompute"


def test_those_of_a_sample_are_kept_where_several_sweeps_go_over_it():
    sampled = job(rows=60_000, **{"method.curvature_rows": 600})  # all rows would take 11.8 GB
    assert choose_gradients(sampled, cpu(), 36) == (
        "keep",
        "gradients of the sampled rows are kept: 118.0 MB fit into 4.0 GB, half of the object store less the queries' "
        "part",
    )
    refused = choose_gradients(sampled, cpu(store=2 * 10**8), 36)
    assert refused[1].startswith("gradients are computed in every sweep: 118.0 MB do not fit into ")


def test_gradients_that_must_be_kept_and_do_not_fit_are_a_wrong_request():
    asked = job(rows=60_000, gradients="keep")
    with pytest.raises(RequestError, match=r"gradients: keep: is not possible: 11\.8 GB do not fit into 4\.0 GB.*use"):
        choose_sizes(asked, cpu(), 2048)
    assert choose_sizes(asked, cpu(store=100 * GB), 2048).gradients == "keep"


def test_a_batch_fills_what_model_and_queries_leave_of_a_gpu():
    assert [expected_batch_tokens(job("8B"), gpu(size * GB)) for size in (40, 80, 140)] == [2048, 4096, 8192]
    assert expected_batch_tokens(job("8B", queries=500), gpu()) < expected_batch_tokens(job("8B"), gpu())
    assert expected_batch_tokens(job("8B"), cpu()) == expected_batch_tokens(job("toy"), cpu())
    two = Room(4, 2, 100 * GB, 64 * GB, 24 * GB)  # GPUs that share the weights
    assert [expected_batch_tokens(job("8B", queries=1), room) for room in (gpu(24 * GB), two)] == [512, 2048]
    assert held_bytes(job()) == 5 * 4 * 50 * 49_152
    assert held_bytes(job(), 10**6) == 400_000


def test_a_second_group_carries_its_own_statistics_beside_its_own_computing():
    one = job("135M")
    assert transport_share(one, 0, 16, groups=4) == pytest.approx(transport_share(one, 0, 16) / 4)
    sampled = job("135M", **{"method.curvature_rows": 100})
    assert transport_share(sampled, 0, 16) == pytest.approx(transport_share(one, 0, 16) / 2, rel=0.01)
    assert transport_share(job("135M", **{"method.name": "hessian-free"}), 0, 16) == 0
