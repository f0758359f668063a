"""The same gradients and folds on one GPU, without Ray: torch, transformers, peft, and our model/ and influence/."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from peft import PeftModel
from torch import nn

from bench.measure import Figure, Options, clock, interleaved, median, say, spread
from bench.models import TARGETS, Shape, adamw, curvature_inputs, first_sweep, full_batch, pair, train
from datainf_ray.corpus.batches import Batch
from datainf_ray.influence.folds import Curvature, Statistic, Statistics
from datainf_ray.model.replica import Replica

#: Llama 3.2 1B and Llama 3.1 8B, but for their weights; `tiny` runs anywhere.
SIZES = {
    "tiny": (Shape(32, 2, vocabulary=64), ((2, 16),)),
    "1B": (Shape(2048, 16, 128_256, 8192, heads=32, kv_heads=8, tied=True), ((32, 512), (8, 2048))),
    "8B": (Shape(4096, 32, 128_256, 14_336, heads=32, kv_heads=8), ((8, 512), (2, 2048))),
}
BATCHES = 4  #: of so many rows of so many tokens as `SIZES` says


def gpu(options: Options) -> Iterator[Figure]:
    """Tokens per second of the first sweep, of training and one row at a time; the share of a product's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, sizes = SIZES[options.size]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        torch.set_num_threads(options.threads or 1)
    product = _product_rate(device, dtype, 8192 if device.type == "cuda" else 512)
    for name, targets in TARGETS.items():
        for b, s in sizes:
            case = f"{options.size}, {str(dtype).removeprefix('torch.')}, batches of {b} × {s}, r=8 on {name}"
            say(f"gpu: {case}")
            yield from _one(options, case, shape, targets, (b, s), dtype, device, product)


def _one(
    options: Options,
    case: str,
    shape: Shape,
    targets: str | list[str],
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    product: float,
) -> Iterator[Figure]:
    replica, trained = pair(shape, targets, dtype, device)
    # In the batches that are multiplied: not the embedding, which is looked up, nor the adapter, which is small
    linear = sum(m.weight.numel() for n, m in trained.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n)
    b, s = size
    batches = [full_batch(b, s, shape.vocabulary, k * b, device) for k in range(BATCHES)]
    inputs = curvature_inputs(replica, options.queries)
    optimizer = adamw(trained)
    tokens, rows = BATCHES * b * s, BATCHES * b
    peaks: dict[str, int] = {}

    ours = _peak(peaks, "first sweep", lambda: first_sweep(replica, batches, rows, inputs))
    floor = _peak(peaks, "training", lambda: train(trained, batches, optimizer))

    def alone() -> None:
        one_by_one(trained, batches[:1], inputs, replica)

    runs = interleaved(
        {
            "first sweep": clock(ours, device),
            "training": clock(floor, device),
            "one row at a time": clock(alone, device),
        },
        options.repeats,
    )
    rates = {name: (tokens if name != "one row at a time" else b * s) / median(runs[name]) for name in runs}
    memory = {name: f", {bytes_ / 2**30:.1f} GiB at most" for name, bytes_ in peaks.items()}
    for name, rate in rates.items():
        note = f"{options.queries} queries{memory.get(name, '')}"
        yield Figure("gpu", case, name, rate, "tokens/s", None, note, runs)
    yield Figure(
        "gpu",
        case,
        "first sweep / training step",
        rates["first sweep"] / rates["training"],
        "×",
        ("≥", 0.95) if options.size != "tiny" else None,
        spread(runs["training"], runs["first sweep"]),
    )
    yield Figure("gpu", case, "first sweep / one row at a time", rates["first sweep"] / rates["one row at a time"], "×")
    yield Figure(
        "gpu",
        case,
        "share of the matrix product's rate",
        4 * linear * rates["first sweep"] / product,
        "",
        None,
        f"4 × {linear:,} × tokens/s over {product / 1e12:.3g} Tflop/s; attention, adapter and folds not counted; "
        f"training {4 * linear * rates['training'] / product:.2f}",
    )


def one_by_one(
    model: PeftModel, batches: list[Batch], inputs: dict[str, Statistics], like: Replica
) -> dict[str, Statistic]:
    """The batch-of-one way: each row's gradient by plain autograd, then the same fold."""
    named = dict(zip((block.name for block in like.blocks), _trainable(model), strict=True))
    fold = Curvature(like.blocks, sum(len(b.rows) for b in batches), like.device, **inputs)
    for batch in batches:
        for k in range(len(batch.rows)):
            ids, labels = (batch.values[name][k : k + 1] for name in ("input_ids", "labels"))
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
                fold.update(name, gradient.float().reshape(1, -1), batch.rows[k : k + 1])
        fold.finite(batch.rows)
    return fold.result()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _product_rate(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """Floating-point operations per second of an n × n × n product on random data."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = 20
    seconds = interleaved({"product": clock(lambda: [a @ b for _ in range(times)], device)}, 5)["product"]
    return times * 2 * n**3 / median(seconds)


def _peak(peaks: dict[str, int], name: str, work: Callable[[], object]) -> Callable[[], None]:
    """Notes what the GPU's memory held at most meanwhile, both models and all batches included."""

    def watched() -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        work()
        if torch.cuda.is_available():
            peaks[name] = torch.cuda.max_memory_allocated()

    return watched
