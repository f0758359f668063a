"""Every sampler against plain autograd on each row alone, in float64: padding, several calls, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from datainf_ray.model.capture import Capture, CaptureError, unsupported
from datainf_ray.model.check import check
from datainf_ray.model.samplers import sampler_of
from tests import reference, tiny
from tests.model.compare import batch_of, examples_of, is_right, rows_for
from tests.runs_of import attribute, scores

WIDTH, WORDS = 6, 9
LENGTHS = (5, 2, 7, 1)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, 4),
    "linear, no bias": lambda: nn.Linear(WIDTH, 8, bias=False),
    "GPT-2's linear": lambda: Conv1D(4, WIDTH),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "layer norm, no bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "layer norm of two axes": lambda: nn.LayerNorm((2, WIDTH)),
    "RMS norm": lambda: nn.RMSNorm(WIDTH),
    "Llama's norm": lambda: LlamaRMSNorm(WIDTH),
    "Gemma's norm": lambda: GemmaRMSNorm(WIDTH),
    "embedding": lambda: nn.Embedding(WORDS, WIDTH),
    "embedding with padding": lambda: nn.Embedding(WORDS, WIDTH, padding_idx=0),
    "embedding that is scaled": lambda: Gemma3TextScaledWordEmbedding(WORDS, WIDTH, 0, embed_scale=3.0),
    "another forward": lambda: Doubled(WIDTH, 4),
    "a weight that counts twice": lambda: SquaredNorm(WIDTH),
    "one number for all": lambda: nn.PReLU(),
}


class Net(nn.Module):
    """A layer on two inputs, between layers that are not trained, and a loss that sees real positions only."""

    def __init__(self, layer: nn.Module, remade: bool | None) -> None:
        super().__init__()
        self.layer, self.remade = layer, remade  # remade: None, or checkpointed with `use_reentrant`

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        def both(x: Tensor, y: Tensor) -> Tensor:
            return torch.sin(self.layer(x)) + 2 * torch.cos(3 * self.layer(y))

        out = both(x, y) if self.remade is None else checkpoint(both, x, y, use_reentrant=self.remade)
        return (out.square() * torch.linspace(0.5, 1, out.shape[-1])).flatten(2).sum(2).mul(mask).sum(1)


def fed(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Two inputs, b × s × …, with rubbish where the mask, b × s, is 0."""
    generator = torch.Generator().manual_seed(0)
    shape = len(LENGTHS), max(LENGTHS)
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    if isinstance(layer, nn.Embedding):
        x, y = (torch.randint(WORDS, shape, generator=generator) for _ in range(2))
    else:
        more = getattr(layer, "normalized_shape", (WIDTH,))
        x, y = (torch.randn(*shape, *more, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y, mask


@pytest.mark.parametrize(
    ("case", "remade"),
    [(case, remade) for case in LAYERS for remade in (None, False, True) if not (remade and "embedding" in case)],
)
def test_every_rows_gradients_are_autograds(case: str, remade: bool | None) -> None:
    torch.manual_seed(0)
    layer = LAYERS[case]().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    net, blocks = Net(layer, remade), dict(layer.named_parameters())
    x, y, mask = fed(layer)
    want: dict[str, list[Tensor]] = {name: [] for name in blocks}
    for i, length in enumerate(LENGTHS):
        row = (x[i : i + 1, :length], y[i : i + 1, :length], mask[i : i + 1, :length])
        found = torch.autograd.grad(Net(layer, None)(*row).sum(), list(blocks.values()))
        for name, gradient in zip(blocks, found, strict=True):
            want[name].append(gradient.flatten())

    assert unsupported(net, blocks) is None
    capture = Capture(net, blocks)
    for parameter in blocks.values():
        parameter.requires_grad_(False)
    if x.is_floating_point():
        x.requires_grad_(True)  # as a hidden state does: a reentrant checkpoint passes nothing on without
    got: dict[str, list[Tensor]] = {name: [] for name in blocks}
    for _ in range(2):  # nothing is left of the first time
        with capture.into(lambda name, gradient, rows: got[name].append(gradient), torch.arange(len(LENGTHS))):
            net(x, y, mask).sum().backward()
    for name in blocks:
        assert len(got[name]) == 2
        for gradients in got[name]:
            assert gradients.dtype == torch.float64
            near = (
                1e-5 if case in ("Gemma's norm", "a weight that counts twice") else 1e-9
            )  # which computes, and is summed, in float32 all the same
            torch.testing.assert_close(gradients, torch.stack(want[name]), rtol=near, atol=0)


@pytest.mark.parametrize("case", [case for case in LAYERS if not case.startswith("linear")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_tokens_in_half_precision_are_float32(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[case]().to(dtype).requires_grad_(False)
    x = fed(layer)[0].repeat_interleave(500, 1)  # so many that a sum in half precision would stand still
    x = x if isinstance(layer, nn.Embedding) else x.to(dtype)
    coefficients = (torch.rand(layer(x).shape) + 0.5).to(dtype)

    def taken(wide: bool) -> dict[str, Tensor]:
        layer.to(torch.float64 if wide else dtype)
        like = coefficients.double() if wide else coefficients
        got: dict[str, Tensor] = {}
        capture = Capture(layer, dict(layer.named_parameters()))
        with capture.into(lambda name, g, at: got.update({name: g}), torch.arange(len(LENGTHS))):
            (layer(x.double() if wide and x.is_floating_point() else x) * like).sum().backward()
        return got

    got, want = taken(False), taken(True)
    for name in want:
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-4, atol=1e-4 * float(want[name].abs().max()))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class SquaredNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * super().forward(x)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        first = super().forward(x)
        return first, None, first.argmax(-1), first.exp()


def test_a_layer_that_gives_several_tensors_is_summed_over_them() -> None:
    torch.manual_seed(0)
    layer = Pair(WIDTH, 2).double()
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64, requires_grad=True)

    def losses(x: Tensor) -> Tensor:
        first, _, _, last = layer(x)
        return (first.sin() + 2 * last).sum()

    want = [torch.autograd.grad(losses(row[None]), list(layer.parameters())) for row in x]
    capture = Capture(layer, dict(layer.named_parameters()))
    layer.requires_grad_(False)
    got: dict[str, Tensor] = {}
    with capture.into(lambda name, g, rows: got.update({name: g}), torch.arange(3)):
        losses(x).backward()
    for k, name in enumerate(("weight", "bias")):
        right = torch.stack([found[k].flatten() for found in want])
        torch.testing.assert_close(got[name], right, rtol=1e-9, atol=0)


class Branching(nn.Linear):
    """A layer that decides by what it is fed, as torch.func cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.mean() > 0) else super().forward(2 * x)


class Same(nn.Linear):
    """Another class and the same sum."""


def test_only_what_computes_what_a_sampler_knows_has_one() -> None:
    assert sampler_of(Same(2, 3)) is sampler_of(nn.Linear(2, 3))
    others = {
        "another forward": Doubled(2, 3),
        "a weight that counts twice": SquaredNorm(WIDTH),
        "rows that are scaled": Gemma3TextScaledWordEmbedding(WORDS, WIDTH, 0, embed_scale=3.0),
        "rows that are normed on the way": nn.Embedding(WORDS, WIDTH, max_norm=1.0),
        "gradients by the batch's counts": nn.Embedding(WORDS, WIDTH, scale_grad_by_freq=True),
        "sparse gradients": nn.Embedding(WORDS, WIDTH, sparse=True),
        "a norm over the batch": nn.BatchNorm1d(WIDTH),
        "one number for all": nn.PReLU(),
    }
    assert {name for name, layer in others.items() if sampler_of(layer) is not None} == set()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_norm": 1.0}, "weight belongs to an Embedding that changes its rows as it reads them"),
        ({"scale_grad_by_freq": True}, "weight belongs to an Embedding whose gradient depends on the batch's counts"),
        ({"sparse": True}, "weight belongs to an Embedding with sparse gradients"),
    ],
)
def test_a_layer_that_cannot_be_run_again_is_refused(options: dict[str, Any], why: str) -> None:
    layer = nn.Embedding(WORDS, WIDTH, **options)
    assert unsupported(layer, {"weight": layer.weight}) == why
    with pytest.raises(ValueError, match=why):
        Capture(layer, {"weight": layer.weight})


class Mixed(nn.Module):
    """A layer without a formula: what it is fed beside its input, or what it gives, is special."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.ones(WIDTH)), how

    def forward(self, x: Tensor, table: Tensor | None = None) -> Any:
        out = x * self.weight if table is None else x * self.weight * table
        return {"out": out} if self.how == "a dict" else out


@pytest.mark.parametrize(
    ("how", "shape", "table", "why"),
    [
        ("a dict", (3, 5, WIDTH), None, "weight belongs to a layer that gives a dict, not tensors"),
        ("", (1, 5, WIDTH), None, r"weight is fed \(1, 5, 6\): no row for each of 3 examples"),
        ("", (15, WIDTH), None, r"weight is fed \(15, 6\): no row for each of 3 examples"),
        ("", (3, 5, WIDTH), (5, WIDTH), r"a Mixed is fed \(5, 6\): no row for each of 3 examples"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error_and_never_wrong(
    how: str, shape: tuple[int, ...], table: tuple[int, ...] | None, why: str
) -> None:
    layer = Mixed(how)
    capture = Capture(layer, dict(layer.named_parameters()))
    layer.weight.requires_grad_(False)
    got: list[str] = []

    def passed() -> None:
        with capture.into(lambda name, g, rows: got.append(name), torch.arange(3)):
            out = layer(torch.randn(shape), None if table is None else torch.randn(table))
            (out["out"] if isinstance(out, dict) else out).sum().backward()

    with pytest.raises(CaptureError, match=why):
        passed()
    assert got == []


def test_a_layer_that_is_fed_its_rows_in_another_way_than_before_is_an_error() -> None:
    layer = nn.Linear(WIDTH, 2)
    capture = Capture(layer, dict(layer.named_parameters()))
    layer.requires_grad_(False)

    def taken(*shape: int) -> Tensor:
        got: dict[str, Tensor] = {}
        with capture.into(lambda name, g, rows: got.update({name: g}), torch.arange(3)):
            layer(torch.ones(*shape, WIDTH)).sum().backward()
        return got["bias"]

    assert taken(5, 3).tolist() == [[5, 5]] * 3  # the sequence first
    assert taken(3, 3).tolist() == [[3, 3]] * 3
    with pytest.raises(CaptureError, match="no row for each of 3 examples"):
        taken(3, 5)


def test_a_layer_that_decides_by_what_it_is_fed_is_run_for_one_row_after_the_other() -> None:
    torch.manual_seed(0)
    layer = Branching(WIDTH, 4).double()
    x = torch.randn(6, 1, WIDTH, dtype=torch.float64)
    assert 0 < int((x.mean((1, 2)) > 0).sum()) < 6
    want = [torch.autograd.grad(layer(row[None]).square().sum(), list(layer.parameters())) for row in x]
    outputs = torch.cat([layer(row[None]) for row in x]).detach()
    capture = Capture(layer, dict(layer.named_parameters()))
    layer.requires_grad_(False)
    for _ in range(2):
        got: dict[str, Tensor] = {}
        with capture.into(lambda name, g, rows, got=got: got.update({name: g}), torch.arange(6)):
            # what a model with such a layer gives row by row, in one batch
            layer.forward = lambda given: nn.functional.linear(  # type: ignore[method-assign]
                torch.where(given.mean((1, 2), keepdim=True) > 0, given, 2 * given), layer.weight, layer.bias
            )
            out = layer(x)
            del layer.forward
            torch.testing.assert_close(out, outputs)
            out.square().sum().backward()
        for k, name in enumerate(("weight", "bias")):
            right = torch.stack([found[k].flatten() for found in want])
            torch.testing.assert_close(got[name], right, rtol=1e-9, atol=0)


@pytest.mark.parametrize("layout", ["flat", "sequence"])
@pytest.mark.parametrize("case", ["linear", "layer norm", "Llama's norm", "another forward"])
def test_rows_that_a_model_lays_end_to_end_or_side_by_side_are_told_apart(case: str, layout: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[case]().double()
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    coefficients = torch.randn(3, 5, 4 if "linear" in case else layer(x).shape[-1], dtype=torch.float64)
    want = [torch.autograd.grad((layer(x[i]) * coefficients[i]).sum(), list(layer.parameters())) for i in range(len(x))]
    capture = Capture(layer, dict(layer.named_parameters()))
    layer.requires_grad_(False)
    got: dict[str, Tensor] = {}
    with capture.into(lambda name, g, rows: got.update({name: g}), torch.arange(3), lengths={5}):
        if layout == "flat":
            out = layer(x.flatten(0, 1)).view(3, 5, -1)
        else:
            out = layer(x.transpose(0, 1)).transpose(0, 1)
        (out * coefficients).sum().backward()
    for k, name in enumerate(dict(layer.named_parameters())):
        near = 1e-5 if "norm" in case else 1e-9
        right = torch.stack([found[k].flatten() for found in want])
        torch.testing.assert_close(got[name], right, rtol=near, atol=0)


def test_a_tensor_of_two_layers_is_summed_over_them() -> None:
    torch.manual_seed(0)
    first, second = nn.Embedding(4, 3).double(), nn.Linear(3, 4, bias=False).double()
    second.weight = first.weight
    net, ids = nn.Sequential(first, nn.Tanh(), second), torch.randint(4, (3, 5))
    want = [torch.autograd.grad(net(row[None]).square().sum(), first.weight)[0].flatten() for row in ids]
    capture = Capture(net, {"tied": first.weight})
    first.weight.requires_grad_(False)
    got: list[Tensor] = []
    for _ in range(2):
        with capture.into(lambda name, g, rows: got.append(g), torch.arange(3)):
            net(ids).square().sum().backward()
    assert len(got) == 2  # each time one sum
    for gradients in got:
        torch.testing.assert_close(gradients, torch.stack(want), rtol=1e-12, atol=0)


SAVED: dict[str, tuple[str, list[str], str]] = {
    "norms": ("llama", ["input_layernorm", "norm"], "right"),
    "embedding": ("llama", ["embed_tokens"], "left"),
    "layer norms and embedding": ("bert", ["LayerNorm", "word_embeddings"], "right"),
    "GPT-2's linear layers": ("gpt2", ["ln_f", "c_fc"], "right"),
    "embedding that is tied": ("gpt2", ["wte"], "left"),
}


@pytest.mark.parametrize("case", SAVED)
def test_saved_modules_are_captured_by_hooks(case: str, tmp_path: Path) -> None:
    arch, modules, side = SAVED[case]
    model = tiny.save_model(tmp_path, arch, side=side, lora={"modules_to_save": modules})
    rows = rows_for(model, tmp_path)
    replica = tiny.replica(model)
    verdict = check(replica, batch_of(examples_of(rows), [0, 1, 2]))
    assert (verdict.path, verdict.reason) == ("hooks", None)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)
    assert {b.kind for b in replica.blocks} >= {"modules_to_save"}
    is_right(replica, model, rows, side, sizes=(1, 3, 7))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("case", ["norms", "layer norms and embedding", "GPT-2's linear layers"])
def test_a_whole_run_with_saved_modules(case: str, tmp_path: Path) -> None:
    arch, modules, side = SAVED[case]
    labels = 3 if arch == "bert" else None
    tiny.write_rows(tmp_path / "train.jsonl", 40, 1, labels)
    tiny.write_rows(tmp_path / "queries.jsonl", 4, 2, labels)
    model = tiny.save_model(tmp_path, arch, side=side, lora={"modules_to_save": modules})
    run = attribute(tiny.configuration(tmp_path, model, tmp_path / "run"))
    assert (run.record.capture.path, run.record.capture.reason) == ("hooks", None)
    peft = reference.load(model)
    g, v = (
        reference.gradients(peft, reference.encode(model, str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )
    assert reference.worst(scores(run), reference.datainf(g, v)) < 1e-4
