"""The largest batch: the search, the batches that are tried, and the trial itself where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datainf_ray.common.errors import RequestError
from datainf_ray.model.fit import CPU_BATCH_TOKENS, FIRST, MOST, largest_batch, search
from datainf_ray.model.replica import BatchLike, Replica
from datainf_ray.tasks.task import Task
from tests import tiny


@pytest.mark.parametrize(("room", "found"), [(1023, None), (1024, 1024), (5000, 4096), (8192, 8192), (10**9, 16384)])
def test_the_search_finds_the_last_power_of_two_that_fits(room: int, found: int | None) -> None:
    tried: list[int] = []

    def fits(budget: int) -> bool:
        tried.append(budget)
        return budget <= room

    assert search(fits, 1024, 16384) == found
    assert tried == sorted(set(tried))  # each once, and never far beyond what fits
    assert max(tried) <= max(1024, 2 * (found or 0))


def trial(replica: Replica) -> Callable[[int, int], BatchLike]:
    task = replica.task
    assert isinstance(task, Task)
    return lambda tokens, length: task.trial_batch(tokens, length, tiny.VOCABULARY).to(replica.device)


def test_a_cpu_takes_what_was_measured(tmp_path: Path) -> None:
    replica = tiny.replica(tiny.save_model(tmp_path, "llama"))
    assert largest_batch(replica, trial(replica), 20, 10**15) == CPU_BATCH_TOKENS


@pytest.mark.parametrize("arch", ["llama", "bert", "gpt2-classifier"])
def test_batches_that_are_tried_have_the_tokens_and_give_every_block_a_gradient(tmp_path: Path, arch: str) -> None:
    replica = tiny.replica(tiny.save_model(tmp_path, arch))
    for length, shape in ((10, (12, 10)), (64, (2, 64)), (200, (1, 64))):
        batch = trial(replica)(shape[0] * shape[1], min(length, 64))
        assert batch.values["input_ids"].shape == shape
        seen: dict[str, int] = {}
        losses = replica.gradients(batch, lambda name, g, rows, seen=seen: seen.update({name: len(g)}))
        assert losses.isfinite().all()
        assert seen == {block.name: shape[0] for block in replica.blocks}
    assert trial(replica)(30, 200).values["input_ids"].shape == (1, 30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_beside_the_model_leaves_less_for_a_batch(tmp_path: Path) -> None:
    replica = tiny.replica(tiny.save_model(tmp_path, "llama"), "cuda")
    free = torch.cuda.mem_get_info()[0]
    most = largest_batch(replica, trial(replica), 60, 0)
    less = largest_batch(replica, trial(replica), 60, int(0.895 * free))
    assert FIRST <= less < most <= MOST
    with pytest.raises(RequestError, match="batch_tokens"):
        largest_batch(replica, trial(replica), 60, free)
