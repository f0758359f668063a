"""How many tokens a batch may have: on a GPU as many as it has memory for, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch

from datainf_ray.common.errors import RequestError
from datainf_ray.model.replica import BatchLike, Replica

#: Seen on one core of a Xeon, small Llamas and a BERT, rows of 47 and of 200 tokens: 1024 is 3 to 5 % faster than 2048
#: (with a hidden size of 576, 10 %); 4096 is 4 to 14 % slower than 2048 and 8192 14 to 23 %: each takes more fresh
#: memory, 0.2, 0.4, 0.7 and 1.4 GiB.
CPU_BATCH_TOKENS = 1024
FIRST, MOST = 2**10, 2**20
_SHARE = 0.9  # of the memory; what remains is for what a trial cannot foresee, fragments above all


def search(fits: Callable[[int], bool], first: int = FIRST, most: int = MOST) -> int | None:
    """The last of first, 2 · first, 4 · first … up to `most` before one that does not fit; None where none does."""
    found, budget = None, first
    while budget <= most and fits(budget):
        found, budget = budget, 2 * budget
    return found


def largest_batch(replica: Replica, trial: Callable[[int, int], BatchLike], longest: int, hold: int) -> int:
    """The most tokens in a batch, a power of two, that a replica's GPU has room for beside `hold` bytes.

    Where not even `FIRST` tokens fit, as with large blocks, fewer, down to one row of the longest by itself.

    Where the model is spread over several GPUs each must have room for its part, and the first for `hold` as well.

    Tries the batches that `trial(tokens, length)` gives for rows of `longest` tokens. `hold` is for what lies there
    beside the model while it is used: a fold's inputs and sums. On a CPU `CPU_BATCH_TOKENS`. Raises `RequestError`
    where not even one row fits.
    """
    if replica.device.type != "cuda":
        return CPU_BATCH_TOKENS
    found = search(lambda budget: _fits(replica, trial(budget, longest), budget, hold))
    fewer = FIRST // 2
    while found is None and 2 * fewer > longest:
        found = fewer if _fits(replica, trial(max(fewer, longest), longest), fewer, hold) else None
        fewer //= 2
    if found is None:
        raise RequestError(
            "cluster.batch_tokens",
            "auto",
            f"not even one row of {longest:,} tokens fits on {replica.device_name}, "
            f"beside the model and {hold / 2**30:.1f} GiB of sums",
            "use a larger GPU, or attribute fewer blocks (model.blocks)",
        )
    return found


def _fits(replica: Replica, batch: BatchLike, tokens: int, hold: int) -> bool:
    torch.cuda.empty_cache()
    rooms: dict[torch.device, float] = {}
    for device in replica.devices:
        torch.cuda.reset_peak_memory_stats(device)
        # what is free, and what this process has already: other processes' share of the GPU is not ours
        rooms[device] = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    rooms[replica.device] -= hold / _SHARE
    replica.most_tokens = tokens
    try:
        replica.gradients(batch, lambda block, gradients, rows: None)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return all(torch.cuda.max_memory_allocated(device) <= _SHARE * room for device, room in rooms.items())
