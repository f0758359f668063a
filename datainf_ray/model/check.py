"""What every worker does before it begins: its way of taking gradients beside plain autograd, on a few real rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datainf_ray.common.errors import RunFailedError, one_line
from datainf_ray.common.words import escaped
from datainf_ray.model.compare import Taken, difference, in_double, is_doubtful, rounding
from datainf_ray.model.faults import is_of_rows, told
from datainf_ray.model.replica import BatchLike, Replica, Verdict, Way, put_into


def check(replica: Replica, batch: BatchLike | None, most_tokens: int | None = None) -> Verdict:
    """Compare the losses and gradients of rows in pairs with plain autograd on each of them, bare and alone.

    Pairs (see `_pairs`) take hardly more memory than a row does, and show what a batch does to its rows; one that
    has more than `most_tokens`, padding counted, is compared row by row. Where they differ by more than rounding,
    the replica goes down a ladder until they agree: no shortcut to the losses (whole logits, with a mask); rows of
    the same length together; both; those by vmap; one row at a time. It stays there and says why. Rows of the same
    length are tried where the batch has two such, and by vmap. A row that cannot be computed alone, or for which
    the device has no room, is left out. Without a batch nothing is compared, and the verdict is what was found when
    the replica was made. Raises `RunFailedError` where no row can be computed.
    """
    replica.most_tokens = most_tokens or 0
    way = replica.shortcut
    quick = way is not None and (way.whole is None or way.unmasked)
    if batch is None or (replica.path == "one by one" and not quick):
        return replica.verdict(None)
    start = replica.way
    while True:
        try:
            return _checked(replica, [batch.pick(pair) for pair in _pairs(batch.lengths, most_tokens)])
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        replica.way = start
        by_length = sorted(range(len(batch)), key=[sum(each) for each in batch.lengths].__getitem__)
        batch = batch.pick(sorted(by_length[:-1]))


def _checked(replica: Replica, pairs: Sequence[BatchLike]) -> Verdict:
    cosine, first = _compare(replica, pairs)
    wrong = first
    for state in () if first is None else _ladder(replica, pairs, first):
        replica.way = state
        cosine, wrong = _compare(replica, pairs)
        if wrong is None:
            break
    if wrong is not None:
        replica.plainly(wrong)
    return replica.verdict(cosine)


def _compare(replica: Replica, pairs: Sequence[BatchLike]) -> tuple[float | None, str | None]:
    """The smallest cosine to the exact gradients, and the first that differs by more than rounding."""
    cosines: list[float] = []
    impossible: list[str] = []
    for pair in pairs:
        there, exact = _exact(replica, pair, impossible)
        if exact is None:
            continue
        cosine, wrong = _differ(replica, there, exact)
        cosines += [] if cosine is None else [cosine]
        if wrong is not None:
            return min(cosines, default=None), wrong
    rows = sum(map(len, pairs))
    if len(impossible) == rows:
        raise RunFailedError(f"the model cannot compute any of {rows} rows; the first is {impossible[0]}")
    return min(cosines, default=None), None


def _exact(replica: Replica, batch: BatchLike, impossible: list[str]) -> tuple[BatchLike, Taken | None]:
    """The rows that can be computed alone, and their losses and gradients by plain autograd; None where none can.

    What is wrong with the others is added to `impossible`.
    """
    losses: list[Tensor] = []
    found: dict[str, list[Tensor]] = {block.name: [] for block in replica.blocks}
    fine: list[int] = []
    for i in range(len(batch)):
        row = replica.room(1)
        try:
            losses.append(replica.alone(batch.one(i), 0, put_into(row), plain=True))
        except Exception as error:
            if not is_of_rows(error):
                raise
            impossible.append(f"{escaped(batch.ids[i], 60)}: {told(error)[:300]}")
            continue
        fine.append(i)
        for name, gradient in row.items():
            found[name].append(gradient)
    if not fine:
        return batch, None
    gradients = {name: torch.cat(rows) for name, rows in found.items()}
    return batch.pick(fine), Taken(torch.stack(losses), gradients, frozenset(gradients))


def _ladder(replica: Replica, pairs: Sequence[BatchLike], wrong: str) -> Iterator[Way]:
    """The ways down from where the replica is, each slower than the one before, because of what was `wrong`."""
    here = replica.way
    plain = replace(here, whole=here.whole or wrong, unmasked=False)
    steps = [here] if plain == here or replica.shortcut is None else [here, plain]
    yield from steps[1:]
    if replica.path == "one by one":
        return
    alike = [len(pair) > len({tuple(each) for each in pair.lengths}) for pair in pairs]
    if any(alike) and not all(alike):
        yield from (replace(step, lengths_reason=wrong) for step in steps)
    yield replace(plain, reason=wrong, lengths_reason=here.lengths_reason or wrong, maps=True)
    yield from (replace(step, reason=wrong) for step in steps)


def _differ(replica: Replica, batch: BatchLike, exact: Taken) -> tuple[float | None, str | None]:
    """The smallest cosine to the exact gradients, and what differs by more than rounding."""
    bounds = rounding(replica.model, replica.device)
    try:
        got = _taken(replica, batch, exact)
    except Exception as error:  # each of the rows can be computed alone
        if not is_of_rows(error):
            raise
        return None, one_line(error)
    cosine, wrong = difference(got, exact, bounds)
    if wrong is None or not is_doubtful(replica.model, got, exact, bounds):
        return cosine, wrong
    with in_double(replica.model) as can:
        try:
            there, right = _exact(replica, batch, []) if can else (batch, None)
            return cosine, None if right is None else difference(_taken(replica, there, right), right, bounds)[1]
        except (RuntimeError, ValueError, TypeError):  # what kernels that have no float64 raise
            return cosine, None


def _taken(replica: Replica, batch: BatchLike, like: Taken) -> Taken:
    """Losses and gradients of a batch, the way that the replica goes."""
    gradients = {name: torch.zeros_like(right) for name, right in like.gradients.items()}
    came: set[str] = set()
    put = put_into(gradients)

    def consume(block: str, found: Tensor, rows: Tensor) -> None:
        came.add(block)
        put(block, found, rows)

    return Taken(replica.gradients(batch, consume), gradients, frozenset(came))


def _pairs(lengths: Sequence[Sequence[int]], most_tokens: int | None) -> list[list[int]]:
    """Rows to be compared together: the shortest with the longest, the first two that are alike, the others by two.

    A pair that has more than `most_tokens` is taken apart.
    """
    order = sorted(range(len(lengths)), key=[sum(each) for each in lengths].__getitem__)
    ends = order[:1] + order[1:][-1:]
    twins = next(([k, n] for k, n in itertools.pairwise(order) if tuple(lengths[k]) == tuple(lengths[n])), [])
    rest = [k for k in order if k not in ends and k not in twins]
    pairs = [ends, *([twins] if twins and twins != ends else []), *(rest[k : k + 2] for k in range(0, len(rest), 2))]
    total = [sum(map(max, itertools.zip_longest(*(lengths[k] for k in pair), fillvalue=0))) for pair in pairs]
    fits = [most_tokens is None or len(pair) * tokens <= most_tokens for pair, tokens in zip(pairs, total, strict=True)]
    apart = [[[k] for k in pair] for pair in pairs]
    return [each for k, pair in enumerate(pairs) for each in ([pair] if fits[k] else apart[k])]
