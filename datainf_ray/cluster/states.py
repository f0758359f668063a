"""States on the cluster: a statistic for every block, in the object store, and the run directory as their backup.

A state lies in shards: portions of consecutive blocks that together are of a size that the store likes. The driver
holds references to it, never a large state itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch

from datainf_ray.cluster.reduce import Shard, arrays, compute, compute_watched, is_large, tensors
from datainf_ray.cluster.sums import got, read_shard, write_shard
from datainf_ray.common.errors import DamagedError
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Fold, Statistic
from datainf_ray.runs.checkpoints import CHECKPOINTS
from datainf_ray.runs.checksums import read_document, write_document
from datainf_ray.runs.directory import RunDirectory

SHARD_BYTES = 64 * 2**20
_AT_ONCE = 4  # shards that are worked on at a time, of those whose size does not follow from the queries

Shards = tuple[Any, ...]  #: a state: a reference per shard to {block name: {name: numpy array}}


class Held(tuple[Any, ...]):
    """A state of a fold that is `held`: its size does not follow from the queries."""


class States:
    """What is done with states between sweeps: the half of `influence.method.Sweeps` that needs no worker.

    `queries` is the number of queries, which the size of a shard follows from; `directory` is where `remember` keeps
    states, as those of the run `owner`, and `say` receives a line when it finds them there. `held(size)` is what the
    largest statistic of a block of `size` entries takes, in bytes, where that does not follow from the queries.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        queries: int,
        directory: RunDirectory,
        owner: str,
        say: Callable[[str], None],
        held: Callable[[int], int] = lambda size: 0,
    ) -> None:
        self.owner = owner
        self.blocks = {block.name: block for block in blocks}
        self.shards = shard_blocks(blocks, queries, held)
        self.queries, self.directory, self.say, self.held = queries, directory, say, held
        self.step = ""  # of `iterate`: what is under way

    def each_block(self, function: Callable[..., Statistic], *states: Shards, **values: Any) -> Shards:
        held = any(isinstance(state, Held) for state in states)

        def shard(number: int) -> Any:
            blocks = [self.blocks[name] for name in self.shards[number]]
            references = [state[number] for state in states]
            work = functools.partial(_apply, function, blocks, values)
            return compute(work, references, self.bytes_of(number, held))

        done: list[Any] = []
        for number in range(len(self.shards)):
            # Matrices take much memory to be solved, and any number of tasks would begin at once.
            if held and number >= _AT_ONCE:
                ray.wait([done[number - _AT_ONCE]])
            done.append(shard(number))
        return tuple(done)

    def merged(self, fold: type[Fold], left: Shards, right: Shards) -> Shards:
        state = self.each_block(_merged, left, right, fold=fold)
        return Held(state) if fold.held else state

    def remember(self, name: str, solve: Callable[[], dict[str, Shards]]) -> dict[str, Shards]:
        """Keep states as safetensors in the run directory, a file per state and shard, the list of them last.

        What an earlier attempt has kept is taken, if all of it is this run's and as it was written.
        """
        index = f"{CHECKPOINTS}/{name}.json"
        try:
            found = self._restored(read_document(self.directory, index, self.owner))
            self.say(f"{name}: taken up from an earlier attempt")
            return found
        except FileNotFoundError:
            pass
        except DamagedError as error:
            self.say(f"{name}: computed again, because {error.path}: {error.problem}")
        solved = solve()
        write_document(self.directory, index, self._written(name, solved), self.owner)
        return solved

    def iterate(
        self,
        name: str,
        start: Callable[[], dict[str, Shards]],
        step: Callable[[int, dict[str, Shards]], dict[str, Shards] | None],
    ) -> dict[str, Shards]:
        """Keep what every step leaves, as `remember` does, in place of what the step before left.

        The sums of a step's sweeps are kept under the step's own name, so that no other step takes them for its own.
        """
        index = f"{CHECKPOINTS}/{name}.json"
        k, files = 0, {}
        try:
            found = read_document(self.directory, index, self.owner)
            states, k, files = self._restored(found["files"]), found["step"], found["files"]
            self.say(f"{name}: taken up from an earlier attempt, behind step {k}")
        except FileNotFoundError:
            states = start()
        except DamagedError as error:
            self.say(f"{name}: computed again, because {error.path}: {error.problem}")
            states = start()
        while True:
            self.step = f"{name}-{k + 1}"
            after = step(k + 1, states)
            self.step = ""
            if after is None:
                return states
            states, k, before = after, k + 1, files
            files = self._written(f"{name}-{k}", states)
            write_document(self.directory, index, {"step": k, "files": files}, self.owner)
            sums = [f for f in self.directory.list(f"{CHECKPOINTS}/sums/") if f"-{name}-{k}-" in f]
            for file in [f for some in before.values() for f in some] + sums:  # their use is over
                self.directory.remove(file)

    def _written(self, name: str, states: Mapping[str, Shards]) -> dict[str, list[str]]:
        """Write states, a file per state and shard; the files by state."""
        files: dict[str, list[str]] = {}
        for key, state in states.items():
            files[key] = [f"{CHECKPOINTS}/{name}-{key}-{k:04d}.safetensors" for k in range(len(state))]
            written = [
                compute(functools.partial(write_shard, self.directory, file, self.owner), [reference], self.bytes_of(k))
                for k, (file, reference) in enumerate(zip(files[key], state, strict=True))
            ]
            got(written)
        return files

    def _restored(self, stored: Mapping[str, Sequence[str]]) -> dict[str, Shards]:
        """The states whose files are listed. Raises `DamagedError` where one of them is not as it was written."""
        ends: list[Any] = []

        def shard(number: int, file: str) -> Any:
            read = functools.partial(read_shard, self.directory, file, self.owner)
            size = self.bytes_of(number)
            if not is_large(size):
                return compute(read, [], size)
            value, end = compute_watched(read, [])
            ends.append(end)
            return value

        states = {key: tuple(shard(k, file) for k, file in enumerate(files)) for key, files in stored.items()}
        got(ends)
        return states

    def collect(self, state: Shards) -> dict[str, dict[str, torch.Tensor]]:
        """A small state in the driver's memory."""
        return {block: statistic for shard in got(state) for block, statistic in tensors(shard).items()}

    def spread(self, state: Mapping[str, Statistic]) -> Shards:
        """A small state from the driver's memory: the inverse of `collect`."""
        return tuple(ray.put(arrays({name: state[name] for name in shard})) for shard in self.shards)

    def bytes_of(self, shard: int, held: bool = False) -> int:
        """About what a shard of the curvature takes, at two nodes: more than that of any other statistic but `Held`."""
        sizes = [self.blocks[name].size for name in self.shards[shard]]
        return sum(max(4 * 2 * self.queries * size, self.held(size) if held else 0) for size in sizes)


def shard_blocks(
    blocks: Sequence[Block], queries: int, held: Callable[[int], int] = lambda size: 0
) -> tuple[tuple[str, ...], ...]:
    """The blocks' names in runs whose queries × d_l float32, or what else is `held` of d_l entries, take about
    `SHARD_BYTES`; a larger block is alone.
    """
    shards: list[list[str]] = []
    room = 0
    for block in blocks:
        size = max(4 * queries * block.size, held(block.size))
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(block.name)
        room -= size
    return tuple(map(tuple, shards))


def _merged(block: Block, left: Statistic, right: Statistic, *, fold: type[Fold]) -> Statistic:
    return fold.merge(left, right)


def _apply(function: Callable[..., Statistic], blocks: list[Block], values: dict[str, Any], *shards: Shard) -> Shard:
    states = [tensors(shard) for shard in shards]
    return arrays({b.name: function(b, *(state[b.name] for state in states), **values) for b in blocks})
