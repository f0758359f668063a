"""A model in several places gives what it gives in one: offloaded by accelerate, or spread over two devices."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel
from torch import Tensor

from datainf_ray.cluster.chunk import sweep_chunk
from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig
from datainf_ray.influence.folds import Curvature
from datainf_ray.model.check import check
from datainf_ray.model.fit import FIRST, MOST, largest_batch
from datainf_ray.model.replica import Replica
from datainf_ray.model.spread import HELD, place
from tests import tiny
from tests.model.compare import batch_of, captured, examples_of, relative, rows_for
from tests.model.elsewhere import SECOND, Elsewhere, dispatch, second_device

Result = tuple[dict[str, Tensor], Tensor]

OFFLOADED: dict[str, dict[str, str]] = {
    "llama": {
        "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
        "model.rotary_emb": "cpu", "lm_head": "cpu",
    },
    "gpt2": {  # its output embedding is its input embedding
        "transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "disk", "transformer.h.1": "disk",
        "transformer.ln_f": "cpu", "lm_head": "cpu",
    },
    "bert": {
        "bert.embeddings": "cpu", "bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu", "bert.pooler": "cpu",
        "classifier": "cpu",
    },
}  # fmt: skip


def unmasked(replica: Replica) -> bool:
    return replica.shortcut is not None and replica.shortcut.unmasked


def same(got: Result, want: Result) -> None:
    """The same losses and gradients, bit by bit."""
    assert torch.equal(got[1], want[1])
    for name, gradients in want[0].items():
        assert gradients.any(), name
        assert torch.equal(got[0][name], gradients), name


@pytest.mark.parametrize("arch", OFFLOADED)
def test_offloaded_layers_change_nothing(tmp_path: Path, arch: str) -> None:
    model = tiny.save_model(tmp_path, arch, "all-linear")
    examples = examples_of(rows_for(model, tmp_path))
    plain = tiny.replica(model)
    replica = tiny.replica(model, device_map=OFFLOADED[arch])
    assert any(p.is_meta for p in replica.model.parameters())
    assert not any(p.is_meta for p in replica.parameters.values())
    assert (replica.device, replica.devices) == (torch.device("cpu"), (torch.device("cpu"),))
    assert (replica.path, replica.loss, unmasked(replica)) == (plain.path, plain.loss, unmasked(plain))
    want = captured(plain, examples, 3)
    same(captured(replica, examples, 3), want)
    verdict = check(replica, batch_of(examples, [0, 1]))
    assert (verdict.path, verdict.loss, verdict.reason) == ("hooks", plain.loss, None)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)
    same(captured(replica, examples, 3), want)  # and what was probed has left no trace
    replica.reason = "for comparison"
    for name, gradients in captured(replica, examples, 3)[0].items():
        assert relative(gradients, want[0][name].double()) < 1e-5, name


def test_an_offloaded_output_embedding_takes_whole_logits(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    examples = examples_of(rows_for(model, tmp_path))
    replica = tiny.replica(model, device_map=OFFLOADED["llama"] | {"lm_head": "disk"})
    assert replica.shortcut.whole is not None
    assert "offloaded" in replica.shortcut.whole
    plain = tiny.replica(model)
    plain.shortcut.whole = "for comparison"
    same(captured(replica, examples, 3), captured(plain, examples, 3))


def test_what_is_trained_as_a_whole_is_not_offloaded(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama", lora={"modules_to_save": ["norm"]})
    with pytest.raises(RequestError, match="device_map"):
        tiny.replica(model, device_map=OFFLOADED["llama"] | {"model.norm": "disk"})


def alike(got: Result, want: Result) -> None:
    """The same losses and gradients up to rounding: autograd adds some things in another order."""
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=0)
    for name, gradients in want[0].items():
        assert gradients.any(), name
        assert relative(got[0][name], gradients.double()) < 1e-5, name


def spread_out(model: dict[str, Any], second: tuple[str, ...], reduction: Any = "mean") -> Replica:
    """A replica with some of its modules on the second device, made as `load_replica` makes it."""
    config = ModelConfig(**model)
    base = (
        tiny.task(config.task)
        .model_class()
        .from_pretrained(config.base, attn_implementation="eager", dtype=torch.float32)
    )
    if second:
        dispatch(base, second)
    wrapped = PeftModel.from_pretrained(base, config.adapter, is_trainable=True)
    return Replica(wrapped, tiny.task(config.task), reduction, torch.device("cpu"))


LLAMA = ("model.layers.1", "model.norm", "lm_head")
SPREAD: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "llama": ("llama", "all-linear", LLAMA),
    "llama, the first layer": ("llama", "all-linear", ("model.embed_tokens", "model.layers.0")),
    "llama, the head alone": ("llama", None, ("lm_head",)),
    "gpt2, tied": ("gpt2", "all-linear", ("transformer.h.1", "transformer.ln_f")),
    "bert": ("bert", "all-linear", ("bert.encoder.layer.1", "bert.pooler")),
    "bert and its head": ("bert", None, ("bert.encoder.layer.1", "bert.pooler", "classifier")),
    "llama classifier": ("llama-classifier", None, ("model.layers.1", "model.norm", "score")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SPREAD)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_devices_give_what_one_gives(tmp_path: Path, case: str, reduction: str) -> None:
    if case == "llama, the first layer" and Version(transformers.__version__) < Version("5.20.2"):
        pytest.skip("this transformers' mask comes of `torch.tensor`, which cannot be had on the second device")
    arch, targets, second = SPREAD[case]
    model = tiny.save_model(tmp_path, arch, targets, settings={"use_cache": False})  # its `torch.tensor` cannot be had
    examples = examples_of(rows_for(model, tmp_path))
    plain = spread_out(model, (), reduction)
    with second_device():
        replica = spread_out(model, second, reduction)
        assert (replica.path, replica.loss, unmasked(replica)) == ("hooks", plain.loss, unmasked(plain))
        assert replica.devices == (torch.device("cpu"), SECOND)
        got = captured(replica, examples, 3)
        verdict = check(replica, batch_of(examples, [0, 1]))
        again = captured(replica, examples, 3)
    want = captured(plain, examples, 3)
    alike(got, want)
    same(again, got)  # and what was probed has left no trace
    assert (verdict.path, verdict.loss, verdict.reason) == ("hooks", plain.loss, None)
    assert verdict.cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["mlp"], "bias": "lora_only"}]
)
def test_other_adapters_on_two_devices(tmp_path: Path, lora: dict[str, Any]) -> None:
    """Also a head that gets its input from the other device only after its hooks have seen it."""
    model = tiny.save_model(tmp_path, "llama", lora=lora)
    examples = examples_of(rows_for(model, tmp_path))
    plain = spread_out(model, ())
    with second_device():
        replica = spread_out(model, ("model.layers.1", "lm_head"))
        got = captured(replica, examples, 3)
        verdict = check(replica, batch_of(examples, [0, 1]))
    assert (plain.path, replica.path, verdict.path, verdict.reason) == ("hooks", "hooks", "hooks", None)
    alike(got, captured(plain, examples, 3))


def test_a_fold_on_the_first_device_sums_what_both_give(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama", "all-linear")
    examples = examples_of(rows_for(model, tmp_path))
    sums = []
    for context, second in ((nullcontext(), ()), (second_device(), LLAMA)):
        with context:
            replica = spread_out(model, second)
            generator = torch.Generator().manual_seed(0)
            queries = {b.name: {"vector": torch.randn(2, b.size, generator=generator)} for b in replica.blocks}
            nodes = {b.name: {"nodes": torch.tensor([0.1, 0.2], dtype=torch.float64)} for b in replica.blocks}

            def fold(replica: Replica = replica, queries: Any = queries, nodes: Any = nodes) -> Curvature:
                return Curvature(replica.blocks, len(examples), replica.device, queries=queries, nodes=nodes)

            swept = sweep_chunk(replica, examples, fold, 60, batch_of)
            sums.append((swept.fold.result(), swept.facts))
    (want, facts), (got, others) = sums
    assert facts.drop_columns("loss") == others.drop_columns("loss")
    for block, statistic in want.items():
        for name, value in statistic.items():
            assert value.any()
            assert (got[block][name] - value).norm() <= 1e-5 * value.norm(), (block, name)


def test_the_second_device_is_one() -> None:
    """It takes no tensor of the first in an operation, and gives its own back by a copy only."""
    with second_device():
        here = torch.arange(3.0)
        there = here.to(SECOND)
        assert isinstance(there, Elsewhere)
        assert there.device == SECOND
        for operation in (lambda: here + there, lambda: here.mul_(there), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                operation()
        with pytest.raises(RuntimeError, match="same device"):
            here[torch.arange(3)] = there
        assert torch.equal((there * 2).to("cpu"), 2 * here)
        assert (there + torch.tensor(1.0)).sum().item() == 6  # a number may come from anywhere


def meta_model(arch: str, **settings: Any) -> Any:
    config = tiny.CONFIGS[arch]()
    for key, value in settings.items():
        setattr(config, key, value)
    with torch.device("meta"):
        return tiny.task(tiny.task_name(arch)).model_class().from_config(config)


def weights_on(model: Any, where: dict[str, int], gpus: int) -> list[int]:
    """Parameters on each GPU; a tied one counts once."""
    seen: dict[int, tuple[int, int]] = {}
    for name, gpu in where.items():
        for parameter in model.get_submodule(name).parameters():
            assert seen.setdefault(id(parameter), (gpu, parameter.numel()))[0] == gpu  # never in two places
    assert seen.keys() == {id(p) for p in model.parameters()}
    return [sum(n for gpu, n in seen.values() if gpu == k) for k in range(gpus)]


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_weights_are_spread_by_the_room_beside_the_sums(gpus: int) -> None:
    model = meta_model("llama", num_hidden_layers=80)
    total = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    free = [8 * total // gpus] * gpus
    where = place(model, free)
    rooms = [1 - HELD] + [1] * (gpus - 1)
    for got, room in zip(weights_on(model, where, gpus), rooms, strict=True):
        assert abs(got - total * room / sum(rooms)) <= 1.5 * layer
    order = [where[f"model.layers.{k}"] for k in range(80)]
    assert order == sorted(order)  # a batch passes each GPU once
    assert where["model.embed_tokens"] == 0
    assert not any(name.startswith("model.layers.") and name.count(".") > 2 for name in where)  # layers are whole


@pytest.mark.parametrize("arch", tiny.CONFIGS.keys() - {"roberta", "bart"})  # BART's own buffer keeps it whole
def test_every_model_is_spread_whole_layers_and_ties_kept(arch: str) -> None:
    model = meta_model(arch)
    assert all(weights_on(model, place(model, [10**9, 10**9]), 2))


def test_what_comes_before_the_layers_is_together() -> None:
    """Token and position embeddings are added, however large they are."""
    where = place(meta_model("gpt2", vocab_size=10000), [10**9] * 8)
    assert (where["transformer.wte"], where["transformer.wpe"]) == (0, 0)


def test_quantized_layers_weigh_less_than_the_rest() -> None:
    model = meta_model("llama", num_hidden_layers=40, vocab_size=4000)
    plain, small = (place(model, [10**9] * 2, torch.bfloat16, q) for q in (None, "4bit"))
    layers = [sum(where[f"model.layers.{k}"] == 0 for k in range(40)) for where in (plain, small)]
    assert layers[1] < layers[0]  # beside an embedding as large as before
    weigh = sum(p.numel() for p in model.parameters())
    with pytest.raises(RequestError, match=r"cluster\.gpus_per_worker: 2: .* do not fit"):
        place(model, [int(0.8 * weigh)] * 2, torch.bfloat16)
    place(model, [int(0.8 * weigh)] * 2, torch.bfloat16, "4bit")


def test_what_fits_only_without_sums_is_left_to_be_tried() -> None:
    model = meta_model("llama", num_hidden_layers=40)
    weigh = 4 * sum(p.numel() for p in model.parameters())
    on = weights_on(model, place(model, [int(0.52 * weigh)] * 2), 2)
    assert on[0] == pytest.approx(on[1], rel=0.05)


def test_a_model_that_does_not_say_what_is_whole_is_not_spread() -> None:
    model = meta_model("llama")
    model._no_split_modules = None
    with pytest.raises(RequestError, match="LlamaForCausalLM does not say"):
        place(model, [10**9] * 2)


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="there are that many")
def test_fewer_gpus_than_asked_for_are_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    for device in ("cpu", "cuda"):
        with pytest.raises(RequestError, match=r"cluster\.gpus_per_worker: 8: torch sees \d GPU"):
            tiny.replica(model, device, devices=8)


@pytest.mark.parametrize(
    ("fixed", "hold", "found"),
    [
        ((0, 0), 0, 32768),  # 0.9 · 40000 by tokens of one byte
        ((0, 20000), 0, 8192),  # the second is the fuller
        ((20000, 0), 0, 8192),
        ((0, 20000), 20000, 8192),  # sums lie on the first
        ((0, 0), 20000, 8192),
        ((0, 36000), 0, None),
        ((0, 35000), 0, 512),  # fewer than FIRST
    ],
)
def test_a_batch_has_room_on_every_gpu(
    monkeypatch: pytest.MonkeyPatch, fixed: tuple[int, int], hold: int, found: int | None
) -> None:
    devices = torch.device("cuda", 0), torch.device("cuda", 1)
    used = dict(zip(devices, fixed, strict=True))
    last = [0]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40000 - used[device], 40000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", used.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: used[device] + last[0])
    replica: Any = SimpleNamespace(
        device=devices[0],
        devices=devices,
        device_name="2 × GPU",
        gradients=lambda budget, _: last.__setitem__(0, budget),
    )
    if found is None:
        with pytest.raises(RequestError, match="2 × GPU"):
            largest_batch(replica, lambda tokens, length: tokens, 10, hold)
    else:
        assert largest_batch(replica, lambda tokens, length: tokens, 10, hold) == found


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(("arch", "targets"), [("llama", "all-linear"), ("gpt2", "all-linear"), ("bert", None)])
def test_two_gpus_give_what_one_gives(tmp_path: Path, arch: str, targets: str | None) -> None:
    model = tiny.save_model(tmp_path, arch, targets)
    examples = examples_of(rows_for(model, tmp_path))
    plain = tiny.replica(model, "cuda")
    replica = tiny.replica(model, "cuda", devices=2)
    assert replica.devices == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert replica.device_name == f"2 × {torch.cuda.get_device_name(0)}"
    assert (replica.path, replica.loss, unmasked(replica)) == ("hooks", plain.loss, unmasked(plain))
    batch = batch_of(examples, range(len(examples))).to("cuda")
    verdict = check(replica, batch)
    assert (verdict.path, verdict.loss) == ("hooks", plain.loss)
    results: list[tuple[dict[str, Tensor], Tensor]] = []
    for one in (plain, replica):
        seen: dict[str, Tensor] = {}

        def keep(block: str, gradients: Tensor, rows: Tensor, seen: dict[str, Tensor] = seen) -> None:
            assert gradients.device == rows.device == torch.device("cuda", 0)
            seen[block] = gradients.cpu()

        results.append((seen, one.gradients(batch, keep).cpu()))
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=0)
    for name, gradients in results[0][0].items():
        assert relative(results[1][0][name], gradients.double()) < 1e-3, name

    def trial(tokens: int, length: int) -> Any:
        return tiny.task(model["task"]).trial_batch(tokens, length, tiny.VOCABULARY).to("cuda")

    assert FIRST <= largest_batch(replica, trial, 60, 0) <= MOST
