"""Wrong requests about adapters and trained models: see hostile_cases.py."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hostile_cases import Case, after, asking, in_turn
from safetensors.torch import load_file, save_file

_ADAPTER, _BASE = "adapter/adapter_model.safetensors", "base/model.safetensors"
_ALL = {"model__adapter": None, "model__blocks": ["*"]}


class _Bomb:
    """Pickled, it writes a file into whatever folder it is read in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch written-by-a-pickle",)


def _made(**lora: Any) -> Callable[[Path], None]:
    """Another adapter of the base, as PEFT saves it. `tokens`: the vocabulary it was extended to before."""

    def change(folder: Path) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        options: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]} | lora
        tokens, names = options.pop("tokens", None), options.pop("names", ["default"])
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        if tokens is not None:
            base.resize_token_embeddings(tokens, mean_resizing=False)
        model = get_peft_model(base, LoraConfig(**options), adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, LoraConfig(**options))
        shutil.rmtree(folder / "adapter")
        model.save_pretrained(str(folder / "adapter"))

    return change


def _edited(name: str, **changes: Any) -> Callable[[Path], Any]:
    return lambda f: (f / name).write_text(json.dumps({**json.loads((f / name).read_text()), **changes}))


def _written(name: str, content: str) -> Callable[[Path], Any]:
    return lambda f: (f / name).write_text(content)


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return changed


def _pickled(content: Callable[[Path], Any], protocol: Any = None) -> Callable[[Path], None]:
    """adapter_model.bin instead of the safetensors, as torch.save or, with a protocol, as plain pickle writes it."""

    def change(folder: Path) -> None:
        made, file = content(folder), folder / "adapter/adapter_model.bin"
        (folder / _ADAPTER).unlink()
        if protocol is None:
            torch.save(made, file)
        else:
            file.write_bytes(pickle.dumps(made, protocol))

    return change


def _below(*names: str) -> Callable[[Path], None]:
    """The adapter in folders below, where a trainer keeps its checkpoints or PEFT its adapters by name."""

    def change(folder: Path) -> None:
        kept = (folder / "adapter").rename(folder / "kept")
        for name in names:
            shutil.copytree(kept, folder / "adapter" / name)

    return change


def _sharded(folder: Path) -> None:
    """The base in three files, of which one is lost."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    (folder / _BASE).unlink()
    base.save_pretrained(folder / "base", max_shard_size="30KB")
    sorted((folder / "base").glob("model-*.safetensors"))[1].unlink()


def _headless(folder: Path) -> None:
    """A classifier's configuration, over the weights of a language model."""
    _edited("base/config.json", architectures=["LlamaForSequenceClassification"], num_labels=3)(folder)
    (folder / "train.jsonl").write_text((json.dumps({"text": "w1 w2", "label": 1}) + "\n") * 9)
    shutil.copy(folder / "train.jsonl", folder / "queries.jsonl")


def _adapters() -> Iterator[tuple[str, Callable[[Path], Any], str]]:
    """Name, what is done to the folder, and what the line must say."""
    yield "checkpoints in its folder", _below("checkpoint-9", "checkpoint-10"), "checkpoint-10"
    yield "two adapters by name in its folder", _below("first", "second"), "first, second"
    yield "two adapters, none of them default", _made(names=["one", "two"]), "one, two"
    bombs: dict[str, Callable[[Path], Any]] = {
        "a bomb": lambda f: _Bomb(),
        "a bomb among tensors": lambda f: {**load_file(f / _ADAPTER), "x": _Bomb()},
        "a bomb as a key": lambda f: {_Bomb(): torch.zeros(1)},
    }
    for name, content in bombs.items():
        yield f"pickle of {name}", _pickled(content), "none of it was run"
        yield f"plain pickle of {name}", _pickled(content, 2), "none of it was run"
    yield "pickle of a list", _pickled(lambda f: [1, 2]), "adapter_model.bin"
    yield "pickle of no tensors", _pickled(lambda f: {"a": 1}), "adapter_model.bin"
    yield "pickle of NaN", _pickled(lambda f: {k: v * float("nan") for k, v in load_file(f / _ADAPTER).items()}), ""
    yield (
        "pickle that is cut off",
        in_turn(
            _pickled(lambda f: load_file(f / _ADAPTER)),
            lambda f: (f / "adapter/adapter_model.bin").write_bytes(
                (f / "adapter/adapter_model.bin").read_bytes()[:900]
            ),
        ),
        "adapter_model.bin",
    )
    yield "modules saved one within the other", _made(modules_to_save=["mlp", "gate_proj"]), "its file has no"
    yield "tokens beyond the vocabulary", _edited("adapter/adapter_config.json", trainable_token_indices=[3, 70]), ""
    yield "a negative token", _edited("adapter/adapter_config.json", trainable_token_indices=[-2]), ""
    yield "tokens of text", _edited("adapter/adapter_config.json", trainable_token_indices=["a"]), ""
    yield "trained tokens that it lacks", _edited("adapter/adapter_config.json", trainable_token_indices=[3]), ""
    yield (
        "trained tokens beyond a smaller base",
        in_turn(
            _made(trainable_token_indices=[5, 63]),
            _tensors(_BASE, lambda w: w.update({k: v[:60] for k, v in w.items() if v.shape[0] == 64})),
            _edited("base/config.json", vocab_size=60),
        ),
        "",
    )
    head = "base_model.model.lm_head.weight"
    extended: dict[str, tuple[Callable[[Any], Any], str]] = {
        "an extended vocabulary without its head": (lambda w: w.pop(head), "70"),
        "tables of different vocabularies": (lambda w: w.update({head: torch.zeros(80, 32)}), "80"),
        "rows of another width": (lambda w: w.update({head: torch.zeros(70, 16)}), "16"),
    }
    for name, (spoil, said) in extended.items():
        yield name, in_turn(_made(tokens=70), _tensors(_ADAPTER, spoil)), said
    yield (
        "another number of trained tokens",
        in_turn(
            _made(trainable_token_indices=[5, 9]),
            _edited("adapter/adapter_config.json", trainable_token_indices=[5, 9, 11]),
        ),
        "",
    )
    for start in ("pissa_niter_4", "pissa_niter_", "nothing"):
        yield (
            f"init_lora_weights {start}",
            _edited("adapter/adapter_config.json", init_lora_weights=start),
            "init_lora_weights",
        )
    kinds: dict[str, dict[str, Any]] = {
        "PROMPT_TUNING": {"num_virtual_tokens": 4, "token_dim": 32},
        "PREFIX_TUNING": {"num_virtual_tokens": 4},
        "P_TUNING": {"num_virtual_tokens": 4},
        "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
        "POLY": {"target_modules": ["q_proj"]},
        "XLORA": {"hidden_size": 32, "adapters": {}},
        "VERA": {"target_modules": ["q_proj"]},
        "OFT": {"target_modules": ["q_proj"], "oft_block_size": 4, "r": 0},
    }  # fmt: skip
    for kind, settings in kinds.items():
        config = json.dumps({"peft_type": kind, "task_type": "CAUSAL_LM", **settings})
        yield f"{kind}", _written("adapter/adapter_config.json", config), "adapter"
    yield (
        "of more layers",
        _tensors(_ADAPTER, lambda w: w.update({next(iter(w)).replace("layers.0", "layers.7"): torch.zeros(4, 32)})),
        "layers.7",
    )
    yield "of a base with more layers", _edited("base/config.json", num_hidden_layers=3), ""
    yield "of a base with fewer layers", _edited("base/config.json", num_hidden_layers=1), ""
    yield "of a base with grouped keys", _edited("base/config.json", num_key_value_heads=2), ""
    yield (
        "a rank for some layers that its tensors have not",
        _edited("adapter/adapter_config.json", rank_pattern={"q_proj": 2}),
        "",
    )
    yield "DoRA by its settings alone", _edited("adapter/adapter_config.json", use_dora=True), "magnitude"
    yield "settings of a later PEFT", _edited("adapter/adapter_config.json", use_something_new=True, r=7), ""
    yield "r of 10^9", _edited("adapter/adapter_config.json", r=10**9), ""
    yield "r of text", _edited("adapter/adapter_config.json", r="four"), ""
    yield "a hostile pattern", _edited("adapter/adapter_config.json", target_modules="(a+)+$[" * 9), ""


def _cases() -> Iterator[Case]:
    for name, change, says in _adapters():
        yield Case(f"adapter: {name}", after(change), says=says or "model.")
    for command in ("plan", "tokens"):
        yield Case(
            f"adapter: checkpoints, {command}", after(_below("checkpoint-9"), command, "c.yaml"), says="checkpoint-9"
        )
    for patterns in (
        ["nothing*"],
        ["!*"],
        ["*.lora_A.*", "!*.lora_A.*"],
        [],
        [""],
        ["!"],
        "*",
        ["*", "!*nowhere*"],
        [3],
        {"a": 1},
    ):
        yield Case(f"blocks: {patterns}", asking(model__blocks=patterns), says="model.blocks")
    for blocks in (["*.lora_*"], ["!*"], ["nowhere"]):
        yield Case(
            f"no adapter: blocks {blocks}", asking(model__adapter=None, model__blocks=blocks), says="model.blocks"
        )
    yield Case("no adapter: no blocks", asking(model__adapter=None), says="model.blocks")
    yield Case("no adapter: no base", asking(**_ALL, model__base="nowhere"), says="model.base")
    yield Case("no adapter: 4-bit", asking(**_ALL, model__quantization="4bit"), says="model.")
    changes: dict[str, Callable[[Path], Any]] = {
        "a lost shard": _sharded,
        "another width": _edited("base/config.json", hidden_size=64),
        "another vocabulary": _edited("base/config.json", vocab_size=70),
        "more layers": _edited("base/config.json", num_hidden_layers=3),
        "NaN": _tensors(_BASE, lambda w: w.update({k: v * float("nan") for k, v in w.items()})),
        "a missing tensor": _tensors(_BASE, lambda w: w.pop("model.norm.weight")),
    }
    for name, change in changes.items():
        yield Case(f"no adapter: {name}", after(change, **_ALL), says="model.base")
    yield Case("with an adapter: a lost shard", after(_sharded), says="model.base")
    head = {**_ALL, "model__task": "sequence-classification"}
    yield Case("no adapter: a classifier without its head", after(_headless, **head), says="score")


CASES: list[Case] = list(_cases())
