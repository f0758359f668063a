"""Whether a run fits at all, however it is cut into portions; and if not, what would."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from datainf_ray.common.words import byte_size
from datainf_ray.influence.block import Block
from datainf_ray.influence.datainf import NODES
from datainf_ray.planning.estimate import PROCESS_BYTES, half_precision, pass_tokens, token_bytes, weight_bytes
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import nodes_of
from datainf_ray.request.job import Job

_HEAVY = 0.1  # of all parameters: a block of so many is worth naming
_LARGER = "use larger machines, or fewer workers on each (cluster.cpus_per_worker)"


def too_large(job: Job, room: Room) -> str | None:
    """Why a run fits in `room` in no way, and what may be left out, in a sentence; None where it may fit.

    What cannot be less: the weights, one row by itself with the gradients of the largest block, and one query with its
    sums, which a GPU leaves to its host where it has no room for them.
    """
    on_gpu = room.device_bytes is not None
    memory = (room.device_bytes or 0) * max(room.gpus_per_worker, 1) if on_gpu else room.worker_bytes
    model, largest, sums = _least(job, on_gpu)
    for what, needs, has in (
        (f"a worker's {'GPU memory' if on_gpu else 'memory'}", model + largest + (0 if on_gpu else sums), memory),
        ("a worker's memory", sums if on_gpu else 0, room.worker_bytes),
    ):
        if needs > has:
            return f"{what} must be {byte_size(needs)} at least, and is {byte_size(has)}: {_instead(job, room, model)}"
    return None


def _least(job: Job, on_gpu: bool) -> tuple[int, int, int]:
    """Bytes of the weights with a row's way through them, of a row's gradients in the largest block, of the sums."""
    facts = job.facts
    row = pass_tokens(job) * token_bytes(facts, half_precision(job, on_gpu))
    vectors = 1 + (NODES if nodes_of(job) else 0)
    return (
        int(weight_bytes(job, on_gpu) + row),
        2 * 4 * max(block.size for block in facts.blocks),
        4 * vectors * facts.parameters,
    )


def least_memory(job: Job, room: Room) -> int:
    """Bytes of a machine that a worker cannot do without, however the run is cut; its share of a machine at most.

    Ray puts no worker on a node that has less left. It is not asked for where nodes must come first: an autoscaler
    whose file does not say what memory its nodes have would bring none, and Ray would wait for them for ever.
    """
    on_gpu = room.gpus_per_worker > 0
    model, largest, sums = _least(job, on_gpu)
    return min(PROCESS_BYTES + (0 if on_gpu else model + largest + sums), room.worker_bytes)


def _instead(job: Job, room: Room, model: int) -> str:
    on_gpu = room.device_bytes is not None
    memory = (room.device_bytes or 0) * max(room.gpus_per_worker, 1) if on_gpu else room.worker_bytes
    if model > memory:
        instead = "use model.quantization, or more GPUs for a worker (cluster.gpus_per_worker)" if on_gpu else _LARGER
        return f"the base alone takes {byte_size(model)}; {instead}"
    names = heavy_blocks(job.facts.blocks)
    kept = tuple(b for b in job.facts.blocks if not any(_alike(b.name) == name for name in names))
    if names and kept:
        patterns = ", ".join(f'"!{name}"' for name in names)
        share = 1 - sum(b.size for b in kept) / job.facts.parameters
        fits = too_large(replace(job, facts=replace(job.facts, blocks=kept)), room) is None
        then = "it would fit" if fits else "it would need less"
        return f'with model.blocks: ["*", {patterns}], which leaves out {share:.0%} of the parameters, {then}'
    return f"{_LARGER}; or attribute fewer blocks (model.blocks)"


def heavy_blocks(blocks: Sequence[Block]) -> list[str]:
    """Patterns of the kinds of block that have most of the parameters, the heaviest first; layers count together."""
    sizes: dict[str, int] = {}
    for block in blocks:
        sizes[_alike(block.name)] = sizes.get(_alike(block.name), 0) + block.size
    total = sum(sizes.values())
    return sorted((name for name, size in sizes.items() if size > _HEAVY * total), key=lambda name: -sizes[name])


def _alike(name: str) -> str:
    """A block's name with a star for its layer's number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
