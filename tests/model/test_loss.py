"""The loss in pieces against the loss from whole logits, and against float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from datainf_ray.model import loss
from datainf_ray.model.loss import chunked_losses, each_token, token_losses

ROWS, LENGTH, HIDDEN, VOCABULARY = 4, 9, 16, 50


def case(dtype: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, W, c, and labels: a row of answers, a row with a prompt, one without targets, one of a token."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64) * spread
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[1, :5] = labels[2] = labels[3, 2:] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels


def with_gradient(losses: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of a weighted sum of them: every row meets a factor of its own."""
    factors = torch.arange(1.0, ROWS + 1, dtype=losses.dtype)
    return losses.detach(), torch.autograd.grad((losses * factors).sum(), hidden)[0]


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("piece", [1, 4, 100])
def test_pieces_give_what_whole_logits_give(reduction: loss.Reduction, biased: bool, piece: int) -> None:
    hidden, weight, bias, labels = case(torch.float64)
    hidden.requires_grad_()
    logits = hidden @ weight.T + (bias if biased else 0)
    want = with_gradient(token_losses(logits, labels, reduction), hidden)
    got = with_gradient(chunked_losses(hidden, weight, bias if biased else None, labels, reduction, piece), hidden)
    assert got[0].dtype == got[1].dtype == torch.float64
    torch.testing.assert_close(got[0], want[0], rtol=1e-13, atol=0)
    assert error(got[1], want[1]) < 1e-14
    assert got[0][2] == 0
    assert not got[1][2].any()


def test_rows_without_any_target_have_no_loss_and_no_gradient() -> None:
    hidden, weight, _, labels = case(torch.float32)
    losses, gradient = with_gradient(
        chunked_losses(hidden.requires_grad_(), weight, None, torch.full_like(labels, -100), "mean"), hidden
    )
    assert not losses.any()
    assert not gradient.any()


def test_losses_without_gradients_are_the_same() -> None:
    hidden, weight, bias, labels = case(torch.float32)
    want = chunked_losses(hidden.requires_grad_(), weight, bias, labels, "mean", 4)
    with torch.no_grad():
        assert torch.equal(chunked_losses(hidden, weight, bias, labels, "mean", 4), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, bias, labels = case(dtype, spread=0.3)
    hidden.requires_grad_()
    wide = hidden.detach().double().requires_grad_()
    want = with_gradient(token_losses(wide @ weight.double().T + bias.double(), labels, "mean"), wide)
    got = with_gradient(chunked_losses(hidden, weight, bias, labels, "mean", 4), hidden)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    # what remains is the rounding of a token's logits and of its gradient, once each
    assert error(got[0], want[0]) < torch.finfo(dtype).eps
    assert error(got[1], want[1]) < torch.finfo(dtype).eps


def test_gradients_of_learnt_tokens_survive_float16() -> None:
    """Where a model is right and sure, ∂loss/∂h is below what float16 holds, until it meets the scale of the loss."""
    weight = torch.tensor([[0.03] * 8, [-0.01] * 4 + [-0.02] * 4], dtype=torch.float16)
    hidden = torch.full((1, 2, 8), 30.0, dtype=torch.float16)
    labels = torch.zeros(1, 2, dtype=torch.int64)
    wide = hidden.double().requires_grad_()
    (want,) = torch.autograd.grad(1024 * token_losses(wide @ weight.double().T, labels, "mean").sum(), wide)
    assert float(want.abs().max()) / 1024 < 2e-6
    hidden.requires_grad_()
    (got,) = torch.autograd.grad(1024 * chunked_losses(hidden, weight, None, labels, "mean").sum(), hidden)
    assert error(got, want) < 0.01


@pytest.mark.parametrize("shift", [0, 1])
def test_a_rows_loss_is_the_sum_of_its_tokens(shift: int) -> None:
    hidden, weight, bias, labels = case(torch.float64)
    labels[0, 0] = 7
    logits = hidden @ weight.T + bias
    each = each_token(logits, labels, shift)
    assert each.shape == labels.shape
    assert torch.equal(each != 0, (labels != -100) & (torch.arange(LENGTH) >= shift))
    torch.testing.assert_close(each.sum(1), token_losses(logits, labels, "sum", shift))
    row, place = 1, 6
    want = -torch.log_softmax(logits[row, place - shift], -1)[labels[row, place]]
    torch.testing.assert_close(each[row, place], want)


MEMORY = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from datainf_ray.cluster.memory import peak_bytes
from datainf_ray.model.replica import Replica
from datainf_ray.tasks.causal_lm import TASK

torch.set_num_threads(1)
base = AutoModelForCausalLM.from_config(LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50_000))
replica = Replica(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])), TASK)
batch = TASK.trial_batch(4096, 64, 50_000)

def grown():
    before = peak_bytes(replica.devices)  # ru_maxrss would be the parent's, if that has more
    replica.gradients(batch, lambda block, gradients, rows: None)
    return peak_bytes(replica.devices) - before

assert replica.loss == "chunked", replica.shortcut.whole
chunked = grown()
replica.shortcut.whole = "for comparison"
print(chunked, grown())
"""


@pytest.mark.slow
def test_peak_memory_does_not_carry_logits_of_a_batch() -> None:
    logits = 4096 * 50_000 * 4
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    chunked, more = map(int, run.stdout.split())
    assert chunked < logits / 3
    assert chunked + more > 2 * logits
