"""What a causal model's forward pass is spared: only what changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, Gemma2Config, GraniteConfig

from datainf_ray.corpus.batches import Batch
from datainf_ray.model import loss
from datainf_ray.model.check import check
from datainf_ray.model.replica import Replica
from tests import tiny
from tests.model.compare import batch_of, captured, examples_of, is_right, relative, rows_for

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": tiny.VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "gemma2": lambda: Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),  # caps its logits at 30
    "granite": lambda: GraniteConfig(**SMALL, logits_scaling=8.0),
}
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(autouse=True)
def more_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in OTHERS.items():
        monkeypatch.setitem(tiny.CONFIGS, name, config)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])  # gpt2's output embedding is its input embedding
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_in_pieces_is_that_of_whole_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, reduction: loss.Reduction
) -> None:
    monkeypatch.setitem(loss.PIECE_BYTES, "cpu", 5 * 4 * tiny.VOCABULARY)  # five tokens
    model = tiny.save_model(tmp_path, arch, "all-linear")
    rows = rows_for(model, tmp_path)
    replica = tiny.replica(model, reduction=reduction)
    assert replica.loss == "chunked"
    is_right(replica, model, rows)
    quick = captured(replica, examples_of(rows), 3)
    replica.shortcut.whole, replica.shortcut.unmasked = "for comparison", False
    assert replica.loss == "whole"
    plain = captured(replica, examples_of(rows), 3)
    torch.testing.assert_close(quick[1], plain[1], rtol=1e-6, atol=0)
    for name, gradients in quick[0].items():
        assert relative(gradients, plain[0][name].double()) < 1e-5, name


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("arch", "lora", "said"),
    [
        ("gemma2", {}, "more with its logits"),
        ("llama", {"modules_to_save": ["lm_head"]}, "ModulesToSaveWrapper"),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}, "not a plain linear layer"),
        ("gpt2", {"modules_to_save": ["lm_head"]}, "ModulesToSaveWrapper"),
    ],
)
def test_where_more_than_a_frozen_layer_makes_the_logits_they_are_whole(
    tmp_path: Path, arch: str, lora: dict[str, Any], said: str
) -> None:
    model = tiny.save_model(tmp_path, arch, None if arch in tiny.ATTENTION else ATTENTION, lora=lora)
    rows = rows_for(model, tmp_path)
    replica = tiny.replica(model)
    assert replica.shortcut.whole is not None
    assert said in replica.shortcut.whole
    is_right(replica, model, rows)
    verdict = check(replica, batch_of(examples_of(rows), [0, 1]))
    assert (verdict.loss, verdict.loss_reason) == ("whole", replica.shortcut.whole)


def test_logits_times_a_constant_need_not_be_whole(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "granite", ATTENTION)
    replica = tiny.replica(model)
    assert replica.loss == "chunked"
    is_right(replica, model, rows_for(model, tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["bias", "mask"])
def test_the_slightest_change_to_the_logits_is_seen(tmp_path: Path, dtype: str, what: str) -> None:
    model = tiny.replica(tiny.save_model(tmp_path, "llama") | {"dtype": dtype}).model

    def change(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        logits = output.logits.clone()
        logits[..., 7] = logits[..., 7] + 0.01 if what == "bias" else torch.finfo(logits.dtype).min
        output.logits = logits
        return output

    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model.register_forward_hook(change)
    replica = Replica(model, tiny.task("causal-lm"))
    assert replica.shortcut.whole is not None
    assert "a cap, a mask or a bias" in replica.shortcut.whole


def test_check_finds_a_wrong_loss_that_was_taken_for_right(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "gemma2", ATTENTION, settings={"final_logit_softcapping": 0.05})
    rows = rows_for(model, tmp_path)
    sample = batch_of(examples_of(rows), [0, 1])
    replica = tiny.replica(model)
    replica.shortcut.whole = None
    verdict = check(replica, sample)
    assert (verdict.path, verdict.loss) == ("hooks", "whole")
    assert verdict.loss_reason is not None
    assert "differ" in verdict.loss_reason
    is_right(replica, model, rows)

    both = tiny.replica(model)  # and with hooks that are wrong as well
    both.shortcut.whole = None
    assert both._capture is not None
    emit = both._capture._emit

    def half(site: Any) -> None:
        site.gradients = {tensor: gradient / 2 for tensor, gradient in site.gradients.items()}
        emit(site)

    both._capture._emit = half
    verdict = check(both, sample)
    assert (verdict.path, verdict.loss) == ("one by one", "whole")
    is_right(both, model, rows)


def test_a_row_by_row_replica_is_checked_too(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "gemma2", ATTENTION, settings={"final_logit_softcapping": 0.05})
    sample = batch_of(examples_of(rows_for(model, tmp_path)), [0, 1])
    replica = tiny.replica(model)
    replica.reason = "on purpose"
    replica.shortcut.whole = None
    assert check(replica, sample).loss == "whole"


def test_without_rows_the_verdict_is_what_start_up_found(tmp_path: Path) -> None:
    verdict = check(tiny.replica(tiny.save_model(tmp_path, "llama")), None)
    assert (verdict.path, verdict.loss, verdict.cosine, verdict.reason, verdict.loss_reason) == (
        "hooks", "chunked", None, None, None,
    )  # fmt: skip


def masks_given(replica: Replica, batch: Batch) -> list[bool]:
    """Whether the model gets a mask, and positions."""
    seen: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        seen.extend(given.get(key) is not None for key in ("attention_mask", "position_ids"))

    handle = replica.model.register_forward_pre_hook(look, with_kwargs=True)
    replica.losses(batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_padding_on_the_right_needs_no_mask(tmp_path: Path, arch: str) -> None:
    model = tiny.save_model(tmp_path, arch)
    examples = examples_of(rows_for(model, tmp_path))
    replica = tiny.replica(model)
    batch = batch_of(examples, [0, 1, 2])
    assert masks_given(replica, batch) == [False, False]
    assert masks_given(replica, batch_of(examples, [0, 1, 2], "left")) == [True, True]

    def longer(x: Tensor, filler: int) -> Tensor:
        return torch.cat([x, torch.full((3, 5), filler)], 1)

    fillers = {"input_ids": 9, "attention_mask": 0, "labels": -100}
    padded = replace(
        batch,
        values={name: longer(batch.values[name], filler) for name, filler in fillers.items()},
    )
    torch.testing.assert_close(replica.losses(padded), replica.losses(batch), rtol=1e-6, atol=0)


@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_that_looks_ahead_gets_its_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: bool) -> None:
    """BERT may be used as a causal model either way; where it is none its mask matters."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(BertConfig(**SMALL, is_decoder=decoder))
    replica = Replica(get_peft_model(base, LoraConfig(r=2, target_modules=["query"])), tiny.task("causal-lm"))
    assert (replica.shortcut.unmasked, replica.loss) == (decoder, "chunked")
    examples = examples_of([{"input_ids": list(range(3, 3 + n)), "labels": list(range(3, 3 + n))} for n in (5, 9, 14)])
    assert masks_given(replica, batch_of(examples, [0, 1]))[0] is not decoder
    alone = torch.cat([replica.losses(batch_of(examples, [k])) for k in range(3)])
    torch.testing.assert_close(replica.losses(batch_of(examples, [0, 1, 2])), alone, rtol=1e-5, atol=0)
    if not decoder:  # and the probe is right about it
        replica.shortcut.unmasked = True
        assert check(replica, batch_of(examples, [0, 1])).loss == "whole"
        assert not replica.shortcut.unmasked
