"""The first sweep's work on a batch over a plain LoRA training step on the same batch, in one process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel

from bench.measure import Figure, Options, clock, interleaved, median, say, spread
from bench.models import TARGETS, Shape, adamw, curvature_inputs, first_sweep, lengths, pair, token_rows, train
from datainf_ray.corpus.batches import Batch, plan_batches
from datainf_ray.corpus.tokens import Example
from datainf_ray.model.replica import Replica
from datainf_ray.tasks.causal_lm import TASK as CAUSAL

#: Few layers: what a layer costs does not depend on how many there are. And tokens, so that a turn takes seconds.
SHAPES = {256: (Shape(256, 4), 12_288), 512: (Shape(512, 3), 6_144), 1024: (Shape(1024, 2), 4_096)}
SMALL = {32: (Shape(32, 1, vocabulary=64), 256)}
BATCH_TOKENS = 1024


def sweep(options: Options) -> Iterator[Figure]:
    """Tokens per second of the first sweep over those of training, for every hidden size and adapter."""
    torch.set_num_threads(options.threads or 1)
    for hidden, (shape, tokens) in (SMALL if options.small else SHAPES).items():
        for name, targets in TARGETS.items():
            case = f"hidden {hidden}, r=8 on {name}"
            say(f"sweep: {case}")
            yield _one(options, case, shape, targets, tokens)


def _one(options: Options, case: str, shape: Shape, targets: str | list[str], tokens: int) -> Figure:
    return over_step("sweep", case, options, pair(shape, targets), shape, tokens, options.queries, 0.95)


def over_step(
    table: str,
    case: str,
    options: Options,
    models: tuple[Replica, PeftModel],
    shape: Shape,
    tokens: int,
    queries: int,
    aim: float | None,
) -> Figure:
    """The speed of the first sweep over that of a training step on the same batches; `models`: one for each."""
    batches = padded(token_rows(as_many(tokens), shape.vocabulary, 3), BATCH_TOKENS)
    rows, real = sum(len(b.rows) for b in batches), sum(int(b.values["attention_mask"].sum()) for b in batches)
    replica, trained = models
    inputs = curvature_inputs(replica, queries)
    optimizer = adamw(trained)
    runs = interleaved(
        {
            "first sweep": clock(lambda: first_sweep(replica, batches, rows, inputs)),
            "training": clock(lambda: train(trained, batches, optimizer)),
        },
        options.repeats,
    )
    ours, floor = real / median(runs["first sweep"]), real / median(runs["training"])
    return Figure(
        table,
        case,
        "first sweep / training step",
        ours / floor,
        "×",
        None if aim is None else ("≥", aim),
        f"{ours:,.0f} over {floor:,.0f} tokens/s, {queries} queries; {spread(runs['training'], runs['first sweep'])}",
        runs,
    )


def as_many(tokens: int) -> list[int]:
    """Lengths of as many rows as give about so many tokens."""
    drawn, total = [], 0
    for n in lengths(tokens // 16 + 1, 2):
        if total >= tokens:
            break
        drawn.append(n)
        total += n
    return drawn


def padded(rows: list[list[int]], batch_tokens: int) -> list[Batch]:
    """Rows of ids as the batches that a worker would make of them; every token is a target."""
    values = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in rows]
    examples = [Example(k, str(k), "ok", "", v, (len(v["labels"]),)) for k, v in enumerate(values)]
    plan = plan_batches([example.lengths for example in examples], batch_tokens)
    return [CAUSAL.batch(examples, positions, 0) for positions in plan]
