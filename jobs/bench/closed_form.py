"""The closed form on gradients in memory, over one matrix product of as many operations and over the paper's loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.measure import Figure, Options, clock, cores, interleaved, median, say, spread
from bench.models import RANK
from datainf_ray.influence.datainf import datainf
from datainf_ray.influence.memory import InMemory

DAMPING = 0.1
#: SmolLM2-135M: 30 layers, hidden 576, 3 key-value heads of 64.
LAYERS, HIDDEN, VALUES = 30, 576, 192
ROWS, QUERIES = 900, 100
SPREAD = 0.32  # standard deviation of log ‖g‖
LOOPED = 1  # of the queries, for the paper's loop: its time is so much for every query


def closed_form(options: Options) -> Iterator[Figure]:
    """How many times the product's time the closed form takes, and how many times as fast as the loop it is."""
    threads = options.threads or cores()
    torch.set_num_threads(threads)
    layers, rows, queries = (1, 30, 4) if options.small else (LAYERS, ROWS, QUERIES)
    case = f"{rows} rows × {queries} queries, {layers} layers of SmolLM2-135M, r=8 on q,v, {threads} thread(s)"
    say(f"closed form: {case}")
    train, asked = _gradients(layers, rows, 1), _gradients(layers, queries, 2)
    size = sum(g.shape[1] for g in train.values())
    kept: dict[str, Any] = {}

    def ours() -> None:
        sweeps = kept["ours"] = InMemory(train)
        datainf(sweeps, sweeps.vectors(asked), DAMPING, norms_first=True)

    products = 3  # of rows × size with size × queries: v·g, the weighted sum of g, and the scores
    runs = interleaved(
        {"closed form": clock(ours), "one product": clock(_product(rows, size, products * queries))}, options.repeats
    )
    assert kept["ours"].names == ["moments", "curvature", "scores"], "the operations were counted for these sweeps"
    flops = 2 * rows * size * products * queries
    one = median(runs["one product"])
    yield Figure(
        "closed form",
        case,
        "time / one product of the same operations",
        median(runs["closed form"]) / one,
        "×",
        ("≤", 1.5),
        f"{median(runs['closed form']):.3g} s over {one:.3g} s ({flops / one / 1e9:,.0f} Gflop/s), {products} products "
        f"of {rows} × {size:,} × {queries}; "
        f"{spread(runs['closed form'], runs['one product'])}",
        runs,
    )
    rows_apart, queries_apart = _apart(train), _apart({name: v[:LOOPED] for name, v in asked.items()})
    looped = interleaved(
        {"the paper's way": clock(lambda: kept.update(paper=by_loops(rows_apart, queries_apart)))}, 1, warm=False
    )["the paper's way"]
    whole = [seconds * queries / LOOPED for seconds in looped]
    difference = kept["ours"].scores[:, :LOOPED] - kept["paper"]
    yield Figure(
        "closed form",
        case,
        "speed over the paper's way, loops over rows and blocks",
        median(whole) / median(runs["closed form"]),
        "×",
        ("≥", 300.0),
        f"{median(whole):.4g} s, from {LOOPED} of the {queries} queries in {median(looped):.3g} s",
        {"the paper's way": looped},
    )
    yield Figure(
        "closed form",
        case,
        "difference from the paper's way",
        float(difference.norm() / kept["paper"].norm()),
        "",
        ("≤", 1e-4),
        "relative, in the Frobenius norm",
    )


def _product(rows: int, size: int, columns: int) -> Callable[[], Tensor]:
    left, right, out = torch.randn(rows, size), torch.randn(size, columns), torch.empty(rows, columns)
    return lambda: torch.mm(left, right, out=out)


def by_loops(rows: list[dict[str, Tensor]], queries: list[dict[str, Tensor]]) -> Tensor:
    """DataInf as the paper's own program goes about it: dicts of small tensors, a query, a block and a row at a time.

    A row or a query is {block: its gradient, in the block's own shape}. Returns rows × queries. What does not depend on
    the query (the damping and the squared norms) is computed for each of them, as it is there.
    """
    n = len(rows)
    ihvps: list[dict[str, Tensor]] = []
    for query in queries:
        ihvp = {}
        for block, v in query.items():
            means = torch.zeros(n)
            for i, row in enumerate(rows):
                means[i] = torch.mean(row[block] ** 2)
            damping = DAMPING * torch.mean(means)
            found = torch.zeros(v.shape)
            for row in rows:
                g = row[block]
                c = torch.sum(v * g) / (damping + torch.sum(g**2))
                found += (v - c * g) / (n * damping)
            ihvp[block] = found
        ihvps.append(ihvp)
    scores = torch.zeros(n, len(queries))
    for i, row in enumerate(rows):
        for q, ihvp in enumerate(ihvps):
            total = torch.zeros(())
            for block, r in ihvp.items():
                total += torch.sum(r * row[block])
            scores[i, q] = -total
    return scores


def _gradients(layers: int, rows: int, seed: int) -> dict[str, Tensor]:
    """Random gradients, rows × size a block; how far apart rows' norms lie is SmolLM2-135M's over real text."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q.A": RANK * HIDDEN, "q.B": HIDDEN * RANK, "v.A": RANK * HIDDEN, "v.B": VALUES * RANK}
    scale = (SPREAD * torch.randn(rows, 1, generator=generator)).exp()
    return {
        f"{layer}.{name}": scale * torch.randn(rows, size, generator=generator)
        for layer in range(layers)
        for name, size in shapes.items()
    }


def _apart(gradients: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The same row by row, every tensor with memory of its own, as r × d matrices."""
    rows = len(next(iter(gradients.values())))
    return [{name: g[i].clone().view(RANK, -1) for name, g in gradients.items()} for i in range(rows)]
