"""Gradients of a whole batch against autograd in float64, one example at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datainf_ray.common.errors import RequestError
from datainf_ray.model.check import check
from datainf_ray.model.replica import Replica
from tests import reference, tiny
from tests.model.compare import batch_of, captured, examples_of, is_right, relative, rows_for

MODELS = [
    ("llama", None, "right"),
    ("llama", "all-linear", "left"),
    ("gpt2", None, "left"),
    ("gpt2", "all-linear", "right"),
    ("bert", None, "right"),
    ("bert", "all-linear", "right"),
    ("roberta", None, "right"),
    ("llama-classifier", None, "left"),
    ("gpt2-classifier", None, "right"),
]


@pytest.mark.parametrize(("arch", "targets", "side"), MODELS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_equal_single_example_autograd(
    tmp_path: Path, arch: str, targets: str | None, side: str, reduction: str
) -> None:
    model = tiny.save_model(tmp_path, arch, targets, side=side)
    rows = rows_for(model, tmp_path)
    replica = tiny.replica(model, reduction=reduction)
    assert replica.path == "hooks"
    is_right(replica, model, rows, side, sizes=(1, 3, 7))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "roberta", "llama-classifier"])
def test_losses_are_those_that_peft_gives_a_row_alone(tmp_path: Path, arch: str) -> None:
    model = tiny.save_model(tmp_path, arch)
    rows = rows_for(model, tmp_path)
    peft = reference.load(model, torch.float32)
    with torch.no_grad():
        want = [peft(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss for r in rows]
    _, losses = captured(tiny.replica(model), examples_of(rows), 7)
    torch.testing.assert_close(losses, torch.stack(want), rtol=1e-5, atol=0)


def test_the_base_gets_no_gradient_and_the_batch_none(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    replica = tiny.replica(model)
    captured(replica, examples_of(rows_for(model, tmp_path)), 3)
    assert all(p.grad is None and not p.requires_grad for p in replica.model.parameters())


def test_dropout_is_off(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "bert", lora={"lora_dropout": 0.5}, settings={"hidden_dropout_prob": 0.5})
    replica = tiny.replica(model)
    examples = examples_of(rows_for(model, tmp_path))
    first, second = captured(replica, examples, 3)[0], captured(replica, examples, 3)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


UNUSUAL = {
    "DoRA": ("llama", {"use_dora": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "norm saved": ("llama", {"modules_to_save": ["norm"]}),
    "head saved": ("llama", {"modules_to_save": ["lm_head"]}),
    "biases": ("bert", {"bias": "lora_only"}),
    "rsLoRA": ("llama", {"use_rslora": True}),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_adapters_beyond_plain_lora_are_right_too(tmp_path: Path, case: str) -> None:
    arch, lora = UNUSUAL[case]
    model = tiny.save_model(tmp_path, arch, lora=lora)
    rows = rows_for(model, tmp_path)
    exact = reference.load(model)
    want = list(reference.gradients(exact, rows).values())
    replica = tiny.replica(model)
    got, _ = captured(replica, examples_of(rows), 3)
    assert sum(b.size for b in replica.blocks) == sum(p.numel() for p in exact.parameters() if p.requires_grad)
    for (name, g), w in zip(got.items(), want, strict=True):
        assert relative(g, w) < 1e-4, name
    verdict = check(replica, batch_of(examples_of(rows), [0, 1, 2]))
    assert (verdict.path, verdict.reason) == ("hooks", None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_wide_gradients_of_the_right_size(tmp_path: Path, dtype: str) -> None:
    model = tiny.save_model(tmp_path, "llama", "all-linear")
    rows = rows_for(model, tmp_path)
    replica = tiny.replica(model | {"dtype": dtype})
    assert replica.model.get_base_model().dtype == getattr(torch, dtype)
    dtypes = set()
    batch = batch_of(examples_of(rows), [0, 1])
    losses = replica.gradients(batch, lambda block, g, at: dtypes.add(g.dtype))
    assert dtypes == {torch.float32}
    assert losses.dtype == torch.float32
    exact = reference.gradients(reference.load(model), rows)
    got, _ = captured(replica, examples_of(rows), 3)
    whole, want = torch.cat(list(got.values()), 1), torch.cat(list(exact.values()), 1)
    assert relative(whole, want) < (0.1 if dtype == "bfloat16" else 0.02)
    assert check(replica, batch).path == "hooks"


def test_any_adapter_name_is_read(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama", adapter_name="mine")
    replica = tiny.replica(model)
    assert replica.blocks[0].name == "model.layers.0.self_attn.q_proj.lora_A.weight"


def test_check_agrees_with_autograd_and_notices_a_wrong_hook(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    examples = examples_of(rows_for(model, tmp_path))
    sample = batch_of(examples, [0, 1])
    replica = tiny.replica(model)
    verdict = check(replica, sample)
    assert (verdict.path, verdict.reason) == ("hooks", None)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)

    wrong = tiny.replica(model)
    assert wrong._capture is not None
    emit = wrong._capture._emit

    def half(site: Any) -> None:
        site.gradients = {tensor: gradient / 2 for tensor, gradient in site.gradients.items()}
        emit(site)

    wrong._capture._emit = half
    verdict = check(wrong, sample)
    assert (verdict.path, verdict.loss) == ("one by one", "chunked")  # the loss was not at fault
    want = captured(tiny.replica(model), examples, 3)[0]
    got = captured(wrong, examples, 3)[0]  # and from then on it is right, if slow
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-7)


def test_a_layer_that_is_called_twice_gives_the_sum(tmp_path: Path) -> None:
    """Weight sharing across depth, as ALBERT does it."""
    model = tiny.save_model(tmp_path, "llama")
    rows = rows_for(model, tmp_path)

    def share(peft: torch.nn.Module) -> None:
        layers = peft.get_base_model().model.layers
        layers[1].self_attn.q_proj = layers[0].self_attn.q_proj

    exact = reference.load(model)
    share(exact)
    want = list(reference.gradients(exact, rows).values())
    loaded = tiny.replica(model).model
    for p in loaded.parameters():
        p.requires_grad_(False)
    for n, p in loaded.named_parameters():
        p.requires_grad_("lora_" in n)
    share(loaded)
    replica = Replica(loaded, tiny.task("causal-lm"))
    for (name, g), w in zip(captured(replica, examples_of(rows), 3)[0].items(), want, strict=True):
        assert relative(g, w) < 1e-4, name


def test_a_base_without_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny.save_model(tmp_path, "bert")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    dropped = "bert.encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in weights.items() if k != dropped}, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"model.base: .* has no .*output\.dense\.weight"):
        tiny.replica(model)


def test_the_head_may_come_from_the_adapter_alone(tmp_path: Path) -> None:
    """A base that was never a classifier: its number of labels and its head are the adapter's."""
    import json

    from safetensors.torch import load_file, save_file

    model = tiny.save_model(tmp_path, "bert", labels=5)
    rows = rows_for(model, tmp_path)
    want = list(reference.gradients(reference.load(model), rows).values())
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    file = tmp_path / "base" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file, {"format": "pt"})
    got = captured(tiny.replica(model), examples_of(rows), 3)[0]
    for (name, g), w in zip(got.items(), want, strict=True):
        assert relative(g, w) < 1e-4, name
