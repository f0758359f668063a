"""The sums of a sweep while it runs: the tree, the replacement of lost sums, and checkpoints.

A row of the tree has a shard of the fold's statistics for every portion of blocks, the top rows where there are
scores, and last a `Tally`. Small shards lie in the driver; of large ones it has references, and Ray's tasks join them.
A checkpoint is a file for every shard of the rows that the tree holds, and a list of them last: since no row ever
changes, only those that are new are written. A run that is taken up again puts them back into the tree.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from datainf_ray.cluster.chunk import ChunkReport
from datainf_ray.cluster.failures import Fault, classify, final_error
from datainf_ray.cluster.reduce import (
    Node,
    Shard,
    StateLostError,
    Tree,
    arrays,
    compute,
    compute_watched,
    is_large,
    tensors,
)
from datainf_ray.common.errors import DamagedError, RunFailedError
from datainf_ray.influence.folds import Fold
from datainf_ray.runs.checksums import read_document, read_tensors, tensors_file, write_document
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.top import merge_top, read_top, write_top

_PROBLEMS = 100  # rows with a problem that are named
_FAILURES = 20  # joins and checkpoints of a sweep that may fail, though nothing that they need is lost
_BEHIND = 8  # joins that may be on their way, beyond two of every shard, before the sweep waits for them


@dataclass(frozen=True)
class Tally:
    """Counts over some chunks: rows by status, tokens, rows cut, and what was computed again."""

    rows: int = 0
    tokens: int = 0
    status: dict[str, int] = field(default_factory=dict)
    problems: tuple[tuple[str, str, str], ...] = ()  # (id, status, detail) of some bad rows, the first ones
    recomputed: int = 0  # chunks whose gradients had been kept, and were lost
    smaller: dict[int, int] = field(default_factory=dict)  # chunk: batch_tokens, where there was no room for more
    cut: int | None = 0  # rows with more tokens than max_length; None where that is not known of all

    @classmethod
    def of(cls, report: ChunkReport) -> Tally:
        smaller = {} if report.batch_tokens is None else {report.chunk: report.batch_tokens}
        problems = tuple(report.problems)
        return cls(report.rows, report.tokens, report.status, problems, int(report.recomputed), smaller, report.cut)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        problems = tuple((name, status, detail) for name, status, detail in value["problems"])
        smaller = {int(chunk): tokens for chunk, tokens in value["smaller"].items()}
        return cls(**{**value, "problems": problems, "smaller": smaller})

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.rows + other.rows,
            self.tokens + other.tokens,
            dict(Counter(self.status) + Counter(other.status)),
            (self.problems + other.problems)[:_PROBLEMS],
            self.recomputed + other.recomputed,
            self.smaller | other.smaller,
            None if self.cut is None or other.cut is None else self.cut + other.cut,
        )


class Sums:
    """The sums of one sweep over `leaves` chunks.

    `sizes` are the bytes of the shards, about; `scores`: the top rows are kept too. Checkpoints are written every
    `seconds` into `folder` of `directory`; without one there are none. They are those of the run `owner`, and `say`
    receives a line for each that is not as it was written.
    """

    def __init__(
        self,
        fold: type[Fold],
        leaves: int,
        sizes: Sequence[int],
        scores: bool,
        directory: RunDirectory | None,
        folder: str,
        seconds: float,
        owner: str = "",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.owner, self.say = owner, say
        self.fold, self.sizes, self.scores = fold, sizes, scores
        self.directory, self.folder, self.seconds = directory, folder, seconds
        self.again: set[int] = set()  # leaves whose sums were lost, to be computed once more
        self.large = [k for k, size in enumerate(sizes) if is_large(size)]
        self._tree = Tree(leaves, self._join)
        self._joins: dict[Any, Node] = {}  # by the reference that tells of their end: joins on their way
        self._saved: set[Node] = set()  # what the last checkpoint has
        self._saving: tuple[dict[Node, Tally], list[tuple[Node, Any]]] | None = None
        self._last = time.monotonic()
        self._failures = 0

    @property
    def tally(self) -> Tally:
        """Of all chunks that the tree has."""
        return sum((row[-1] for row in self._tree.waiting.values()), Tally())

    @property
    def missing(self) -> list[int]:
        """The leaves that the tree does not have."""
        there = {leaf for node in self._tree.waiting for leaf in self._tree.leaves(node)}
        return [leaf for leaf in range(self._tree.widths[0]) if leaf not in there]

    def restore(self) -> None:
        """Put back what an earlier attempt's last checkpoint has, as far as it is this run's and whole."""
        for node, tally in self._listed().items():
            row = self._read(node, tally)
            if row is not None:
                self._saved.add(node)
                self._tree.put(node, row)

    def add(self, leaf: int, results: Sequence[Any], tally: Tally) -> None:
        """A chunk's results, as references. Waits where the joins cannot keep up with the workers."""
        near = [k for k in range(len(results)) if k not in self.large]
        try:
            values = dict(zip(near, ray.get([results[k] for k in near]), strict=True))
        except RayError as error:
            self._check(error)
            self.again.add(leaf)  # lost with the node, mostly, before it came here
            return
        self._tree.add(leaf, [*(values.get(k, result) for k, result in enumerate(results)), tally])
        self._look(_BEHIND + 2 * len(self.large))

    def tick(self) -> None:
        """To be called often: look after joins, and write checkpoints when it is time."""
        self._look(None)
        if self.directory is None:
            return
        if self._saving is not None:
            self._save_more()
        elif time.monotonic() - self._last >= self.seconds and not self._saved.issuperset(self._tree.waiting):
            self._save()

    def settle(self) -> set[int]:
        """Wait for all joins; then the leaves that must be computed again."""
        self._look(0)
        again, self.again = self.again, set()
        return again

    def keep(self, always: bool) -> None:
        """Write what there is, and wait for it; with `always` false only if this sweep has been written before."""
        if self.directory is None or not (always or self._saved):
            return
        while self._saving is not None:
            self._save_more(wait=True)
        if not self._saved.issuperset(self._tree.waiting):
            self._save()
        while self._saving is not None:
            self._save_more(wait=True)

    def result(self) -> list[Any]:
        """The root's row: values and references, the `Tally` last."""
        return self._tree.result()

    @property
    def _list(self) -> str:
        return f"{self.folder}.json"

    def _join(self, node: Node, left: list[Any], right: list[Any]) -> list[Any]:
        row: list[Any] = []
        for k in range(len(self.sizes)):
            if k in self.large:
                joined, end = compute_watched(functools.partial(_merge, self.fold), [left[k], right[k]])
                self._joins[end] = node
                row.append(joined)
            else:
                row.append(_merge(self.fold, left[k], right[k]))
        if self.scores:
            row.append(merge_top(left[-2], right[-2]))
        return [*row, left[-1] + right[-1]]

    def _look(self, most: int | None) -> None:
        """See which joins have come to an end; wait until there are at most so many."""
        while self._joins:
            wait = most is not None and len(self._joins) > most
            ended, _ = ray.wait(list(self._joins), num_returns=1, timeout=None if wait else 0)
            if not ended:
                return
            node = self._joins.pop(ended[0])
            if self._failed(ended[0]):
                self._lose(node)

    def _failed(self, reference: Any) -> bool:
        """Whether a small result is not there because something was lost. Raises what else went wrong, in one line."""
        try:
            ray.get(reference)
        except RayError as error:
            self._check(error)
            return True
        return False

    def _check(self, error: RayError) -> None:
        """Raises what would go wrong again, or goes wrong too often."""
        failure = classify(error)
        if failure.fault is Fault.PERMANENT:
            raise final_error(failure) from None
        self._failures += failure.fault is not Fault.LOST  # which may be many, with one node
        if self._failures == _FAILURES:
            raise RunFailedError(f"sums could not be computed {_FAILURES} times: {failure.reason}") from None

    def _lose(self, node: Node) -> None:
        """A row is lost with all that it has gone into: put back what is saved of it, compute the rest again."""
        dropped = self._tree.drop(node)
        if dropped is None:
            return
        below = self._tree.leaves(dropped)
        self._joins = {end: at for end, at in self._joins.items() if self._tree.leaves(at).start not in below}
        again = set(below)
        for saved in [s for s in self._saved if self._tree.leaves(s).start in below and s[0] <= dropped[0]]:
            tally = self._listed().get(saved)
            row = None if tally is None else self._read(saved, tally)
            if row is None:
                self._saved.discard(saved)
                continue
            self._tree.put(saved, row)
            again.difference_update(self._tree.leaves(saved))
        self.again |= again

    def _save(self) -> None:
        assert self.directory is not None
        self._last = time.monotonic()
        rows = dict(self._tree.waiting)
        writes: list[tuple[Node, Any]] = []
        for node, row in rows.items():
            if node in self._saved:
                continue
            for k in range(len(self.sizes)):
                write = functools.partial(write_shard, self.directory, self._file(node, k), self.owner)
                if k in self.large:
                    writes.append((node, compute(write, [row[k]], self.sizes[k])))
                else:
                    write(row[k])
            if self.scores:
                write_top(self.directory, self._file(node, len(self.sizes)), row[-2], self.owner)
        self._saving = {node: row[-1] for node, row in rows.items()}, writes
        self._save_more()

    def _save_more(self, wait: bool = False) -> None:
        """Write the list once all its files are there."""
        assert self._saving is not None
        assert self.directory is not None
        tallies, writes = self._saving
        references = [reference for _, reference in writes]
        if references:
            ended, _ = ray.wait(references, num_returns=len(references), timeout=None if wait else 0)
            if len(ended) < len(references):
                return
        self._saving = None
        lost = {node for node, reference in writes if self._failed(reference)}
        for node in lost:
            self._lose(node)
        if lost:
            return  # what the last list has is still there
        entries = [{"level": n[0], "index": n[1], "tally": asdict(tally)} for n, tally in sorted(tallies.items())]
        write_document(self.directory, self._list, entries, self.owner)
        before, self._saved = self._saved, set(tallies)
        for node in before - self._saved:
            for name in self._files(node):
                self.directory.remove(name)

    def _files(self, node: Node) -> list[str]:
        names = [self._file(node, k) for k in range(len(self.sizes) + self.scores)]
        return names + [f"{name}.parquet" for name in names[len(self.sizes) :]]

    def _file(self, node: Node, k: int) -> str:
        return f"{self.folder}/{node[0]:02d}-{node[1]:06d}-{k:04d}.safetensors"

    def _listed(self) -> dict[Node, Tally]:
        """What the last checkpoint has: nothing where there is none, or where it is not as this run wrote it."""
        if self.directory is None:
            return {}
        try:
            entries = read_document(self.directory, self._list, self.owner)
        except FileNotFoundError:
            return {}
        except DamagedError as error:
            self.say(f"{error.path}: {error.problem}; its sums are computed again")
            return {}
        return {(entry["level"], entry["index"]): Tally.from_json(entry["tally"]) for entry in entries}

    def _read(self, node: Node, tally: Tally) -> list[Any] | None:
        """A row of the last checkpoint; None where a file of it is damaged or gone."""
        assert self.directory is not None
        row: list[Any] = []
        ends: list[Any] = []
        try:
            for k in range(len(self.sizes)):
                read = functools.partial(read_shard, self.directory, self._file(node, k), self.owner)
                if k in self.large:
                    shard, end = compute_watched(read, [])
                    ends.append(end)
                    row.append(shard)
                else:
                    row.append(read())
            if self.scores:
                row.append(read_top(self.directory, self._file(node, len(self.sizes)), self.owner))
            got(ends)
        except DamagedError as error:
            self.say(f"{error.path}: {error.problem}; its sums are computed again")
            return None
        return [*row, tally]


def got(references: Sequence[Any]) -> list[Any]:
    """`ray.get`. Raises `final_error` for a permanent error, and `StateLostError` for any other."""
    try:
        return list(ray.get(list(references)))
    except RayError as error:
        failure = classify(error)
        if failure.fault is Fault.PERMANENT:
            raise final_error(failure) from None
        raise StateLostError(failure.reason) from None


def write_shard(directory: RunDirectory, file: str, owner: str, shard: Shard) -> None:
    """A shard as safetensors, with a checksum."""
    flat = {f"{name}:{block}": value for block, statistic in shard.items() for name, value in statistic.items()}
    arrays_of = {name: np.asarray(value, order="C") for name, value in flat.items()}
    directory.write(file, tensors_file(arrays_of, owner, file))


def read_shard(directory: RunDirectory, file: str, owner: str) -> Shard:
    """What `write_shard` wrote. Raises `DamagedError` where that is damaged, another run's, or gone."""
    try:
        values = read_tensors(directory, file, owner)
    except FileNotFoundError:
        raise DamagedError(directory.path(file), "is gone") from None
    shard: Shard = {}
    for key, value in values.items():
        name, _, block = key.partition(":")
        shard.setdefault(block, {})[name] = value
    return shard


def _merge(fold: type[Fold], left: Shard, right: Shard) -> Shard:
    a, b = tensors(left), tensors(right)
    return arrays({name: fold.merge(a[name], b[name]) for name in a})
