"""What a worker does with one chunk: rows become examples, batches and gradients, and a fold takes those.

The gradients come from a replica's backward pass, from what an earlier sweep kept in the object store, or from a
gradient index. The fold sees the same updates in the same order from the first two, and so gives the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datainf_ray.cluster.known import facts_of
from datainf_ray.common.errors import RunFailedError
from datainf_ray.corpus.batches import Batch, plan_batches
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.passages import room_for
from datainf_ray.corpus.preview import fold as fold_text
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Fold
from datainf_ray.influence.transform import Transform, transformed
from datainf_ray.model.faults import is_of_rows, told
from datainf_ray.model.replica import Replica
from datainf_ray.runs.pictures import with_fewer_pictures
from datainf_ray.runs.schemas import FAILED, OK
from datainf_ray.runs.texts import with_less_text

NONFINITE = "nonfinite"

#: A row's prediction in words, of its plain values: see `Task.predicted`.
Predicted = Callable[[Any], str | None]


@dataclass(frozen=True)
class Timing:
    """When a chunk was computed, by its worker's clock (seconds since 1970)."""

    began: float
    ended: float
    waited: float  # seconds that the worker was idle before, because the rows were still being read

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True)
class ChunkReport:
    """What the driver learns of a finished chunk; the statistics themselves travel beside it."""

    chunk: int
    rows: int
    tokens: int
    timing: Timing
    status: dict[str, int]
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # (id, status, detail) of some bad rows
    facts: pa.Table | None = None  # queries only
    recomputed: bool = False  # its gradients had been kept, and were lost
    batch_tokens: int | None = None  # where the device had no room for batches as large as planned
    cut: int | None = 0  # rows with more tokens than max_length; None where that is not known


class Recorder(Protocol):
    """Takes what a fold takes, for other uses."""

    def restart(self) -> None:
        """The chunk begins, again perhaps: forget what was taken."""

    def take(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor | None) -> None:
        """`gradients` (b × d_l) of the chunk's rows `rows`, and their squared norms, as `Fold.update` takes them."""


#: What a fold was given: a block, rows (b), gradients (b × d_l), squared norms (b) where they are not the gradients'.
Update = tuple[str, np.ndarray, np.ndarray, "np.ndarray | None"]


@dataclass
class Kept:
    """A chunk's gradients as the fold got them, update by update, to be given to another."""

    facts: pa.Table
    updates: list[Update]


class Keeper:
    """Records a chunk's gradients on the host, in the order in which they came."""

    def __init__(self) -> None:
        self.updates: list[Update] = []

    def restart(self) -> None:
        self.updates = []

    def take(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor | None) -> None:
        norms = None if sqnorms is None else sqnorms.cpu().numpy()
        self.updates.append((block, rows.cpu().numpy(), gradients.cpu().numpy(), norms))


class Indexer:
    """Records a chunk's gradients as an index has them, rows × d'_l a block, on the host; zero where a row has none."""

    def __init__(self, transform: Transform, blocks: Sequence[str], rows: int) -> None:
        self.transform = transform
        self.sizes = {block: (rows, transform.size(block)) for block in blocks}
        self.gradients: dict[str, Tensor] = {}

    def restart(self) -> None:
        self.gradients = {block: torch.zeros(size) for block, size in self.sizes.items()}

    def take(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor | None) -> None:
        self.gradients[block][rows.cpu()] = self.transform.apply(block, gradients).cpu()

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: gradients.numpy() for name, gradients in self.gradients.items()}


@dataclass
class Swept:
    """A chunk after a sweep: the fold, and the facts of its rows."""

    fold: Fold
    facts: pa.Table
    usable: np.ndarray  # (rows,) bool: which of them have gradients


def sweep_chunk(
    replica: Replica,
    examples: Sequence[Example],
    make_fold: Callable[[], Fold],
    batch_tokens: int,
    make_batch: Callable[[Sequence[Example], Sequence[int]], Batch],
    recorders: Sequence[Recorder] = (),
    transform: Transform | None = None,
    predicted: Predicted | None = None,
) -> Swept:
    """Feed the gradients of a chunk's usable examples, as `transform` makes them, to a fold and to the recorders.

    `predicted` says in words what the model predicts for a row, which comes from the same pass.

    Batches follow from the examples' lengths alone, and are padded on the right whatever side the tokenizer is set to
    for generating: a causal model never sees what comes after, and an encoder's first token stays the first. A row
    whose loss or gradient is not finite, or whose pass raises an exception, has spoiled the fold's sums by the time it
    is known, so the chunk begins again without it; the other rows keep their batches. A batch that raises one though
    none of its rows does is computed one row at a time. An exception that is not the rows' affair is raised.
    """
    usable = [k for k, example in enumerate(examples) if example.status == OK]
    batches = [
        [usable[i] for i in batch] for batch in plan_batches([examples[k].lengths for k in usable], batch_tokens)
    ]
    replica.most_tokens = batch_tokens
    spoilt: dict[int, tuple[str, str]] = {}  # status and detail
    apart: set[int] = set()  # numbers of batches
    while True:
        fold = make_fold()
        for recorder in recorders:
            recorder.restart()
        losses = torch.full((len(examples),), torch.nan, dtype=torch.float64, device=replica.device)
        fine = torch.ones(len(examples), dtype=torch.bool, device=replica.device)
        outputs: list[tuple[Tensor, Tensor]] = []  # rows, and what is predicted for them
        again = False
        for number, planned in enumerate(batches):
            positions = [k for k in planned if k not in spoilt]
            if not positions:
                continue
            batch = make_batch(examples, positions).to(replica.device)
            rows = batch.rows

            def consume(block: str, gradients: Tensor, at: Tensor, rows: Tensor = rows, fold: Fold = fold) -> None:
                here = rows[at]
                taken, sqnorms = transformed(transform, block, gradients)
                fold.update(block, taken, here, sqnorms)
                for recorder in recorders:
                    recorder.take(block, taken, here, sqnorms)

            def see(values: Tensor, at: Tensor, rows: Tensor = rows, outputs: list[Any] = outputs) -> None:
                outputs.append((rows[at], values))

            try:
                batch_losses = replica.gradients(batch, consume, number in apart, see)
            except Exception as error:
                if number in apart or not is_of_rows(error):
                    raise
                failed = _failing(replica, batch)
                spoilt |= {positions[k]: (FAILED, reason) for k, reason in failed.items()}
                if not failed:
                    apart.add(number)
                again = True
                continue
            losses[rows] = batch_losses.double()
            fine[rows] = fold.finite(rows) & batch_losses.isfinite()
        found = (~fine).nonzero().flatten().tolist()  # one wait for the device a chunk, not one a batch
        if not found and not again:
            break
        spoilt |= dict.fromkeys(found, (NONFINITE, ""))
    ended = [
        example if k not in spoilt else replace(example, status=spoilt[k][0], detail=spoilt[k][1])
        for k, example in enumerate(examples)
    ]
    status = [example.status for example in ended]
    said = _said(outputs, status, predicted)
    return Swept(fold, facts_of(ended, losses.cpu().numpy(), status, said), np.array([s == OK for s in status]))


def _said(
    outputs: Sequence[tuple[Tensor, Tensor]], status: Sequence[str], predicted: Predicted | None
) -> list[str | None]:
    """For each row of a chunk what the model predicts, in words; None where that is not known."""
    found: list[str | None] = [None] * len(status)
    if predicted is None:
        return found
    for rows, values in outputs:
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            if status[row] != OK:
                continue
            try:
                one = predicted(value)
            except Exception as error:  # a task of the user's own: anything
                raise RunFailedError(f"model.task: predicted raised {told(error)}") from None
            if not isinstance(one, str | None):
                raise RunFailedError(f"model.task: predicted gives {type(one).__name__}, not a text or None")
            found[row] = one
    return found


def _failing(replica: Replica, batch: Batch) -> dict[int, str]:
    """The rows of a batch (0 to b − 1) that raise an exception alone, and what it says."""
    found = {}
    for k in range(len(batch)):
        try:
            replica.gradients(batch.one(k), lambda block, gradients, at: None, one_by_one=True)
        except Exception as error:
            if not is_of_rows(error):
                raise
            found[k] = fold_text(told(error))
    return found


def replay(
    kept: Kept, make_fold: Callable[[], Fold], device: torch.device | str, recorders: Sequence[Recorder] = ()
) -> Swept:
    """Feed a chunk's kept gradients to a fold and to the recorders, as the sweep that kept them did."""
    fold = make_fold()
    for recorder in recorders:
        recorder.restart()
    for block, rows, gradients, sqnorms in kept.updates:
        # A copy: the store's memory is read-only, and aligned otherwise, which a matrix product's bits may depend on.
        values, here = torch.tensor(gradients, device=device), torch.tensor(rows, device=device)
        norms = None if sqnorms is None else torch.tensor(sqnorms, device=device)
        fold.update(block, values, here, norms)
        for recorder in recorders:
            recorder.take(block, values, here, norms)
    return _seen(fold, kept.facts, device)


def from_index(
    gradients: dict[str, np.ndarray],
    sqnorms: np.ndarray,
    facts: pa.Table,
    make_fold: Callable[[], Fold],
    device: torch.device | str,
) -> Swept:
    """Feed a part of a gradient index to a fold; `sqnorms` (rows × blocks) are those of the gradients themselves."""
    fold = make_fold()
    usable = np.flatnonzero(_fine(facts))
    rows = torch.tensor(usable, device=device)
    for number, (block, values) in enumerate(gradients.items()):
        norms = torch.tensor(sqnorms[usable, number], device=device)
        fold.update(block, torch.tensor(values[usable], device=device), rows, norms)
    return _seen(fold, facts, device)


def _seen(fold: Fold, facts: pa.Table, device: torch.device | str) -> Swept:
    rows = np.flatnonzero(_fine(facts))
    bad = rows[~fold.finite(torch.tensor(rows, device=device)).cpu().numpy()]  # their gradients were finite
    if len(bad):
        status = facts["status"].to_numpy().copy()
        status[bad] = NONFINITE
        column = facts.schema.get_field_index("status")
        facts = facts.set_column(column, facts.schema.field(column), pa.array(status, pa.string()))
    return Swept(fold, facts, _fine(facts))


def _fine(facts: pa.Table) -> np.ndarray:
    return np.array([status == OK for status in facts["status"].to_pylist()], dtype=bool)


def require_usable(swept: Swept, what: str) -> None:
    """Raises `RunFailedError` where no row of a chunk has a gradient, with the first one's id, status and detail."""
    if not swept.usable.any():
        bad = swept.facts.slice(0, 1).to_pylist()[0]
        why = ": ".join(filter(None, (fold_text(bad["id"]), bad["status"], bad["detail"])))
        raise RunFailedError(f"none of {len(swept.usable):,} {what} can be used; the first is {why}")


def report_of(
    chunk: Chunk,
    facts: pa.Table,
    timing: Timing,
    *,
    whole: int = 0,
    recomputed: bool = False,
    batch_tokens: int | None = None,
) -> ChunkReport:
    """A chunk's report; where it is one of so many rows as are to be known `whole`, it carries their facts."""
    status = facts["status"].to_pylist()
    bad = [k for k, s in enumerate(status) if s != OK]
    problems = [(facts["id"][k].as_py(), status[k], facts["detail"][k].as_py()) for k in bad[:3]]
    tokens = facts["tokens"].to_numpy()[_fine(facts)].sum()
    beyond = facts["tokens_cut"]
    return ChunkReport(
        chunk.number,
        len(facts),
        int(tokens),
        timing,
        dict(Counter(status)),
        problems,
        with_fewer_pictures(with_less_text(facts, room_for(whole))) if whole else None,
        recomputed,
        batch_tokens,
        None if beyond.null_count else int((beyond.to_numpy() > 0).sum()),
    )
