"""Which adapters are tried on which architectures; every one by itself, as PEFT makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from safetensors.torch import load_file, save_file

from zoo.architectures import ARCHITECTURES, WORDS, Architecture

GROWN = WORDS + 7  # tokens of a vocabulary that was extended

_QV = ("q_proj", "v_proj")
_MOE = ("Qwen3-MoE", "Mixtral", "GPT-OSS", "DeepSeek-V3")  # on parameters, as fused experts are, PEFT takes no dropout
_FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Case:
    """An architecture with an adapter; `adapter` None: all of the model was trained."""

    architecture: str
    name: str
    adapter: Callable[[], Any] | None  #: PEFT's configuration, without what says the task
    settings: Mapping[str, Any] = field(default_factory=dict)  #: of the base's configuration
    tokens: int | None = None  #: to how many the vocabulary was extended before it was trained
    saved: Callable[[Path], None] | None = None  #: changes the adapter's folder
    command: bool = False  #: by the command, with a Ray of its own
    refused: str = ""  #: what the line says, where it is refused

    @property
    def model(self) -> Architecture:
        return ARCHITECTURES[self.architecture]

    def __str__(self) -> str:
        return f"{self.architecture} / {self.name}"


def lora(**options: Any) -> Callable[[], Any]:
    return lambda: LoraConfig(**({"r": 3, "lora_alpha": 6, "lora_dropout": 0.1} | options))


def other(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(peft, name)(**({"target_modules": list(_QV)} | options))


def _targets(architecture: str) -> Any:
    targets = ARCHITECTURES[architecture].targets
    return targets if isinstance(targets, str) else list(targets)


def _on(architecture: str, name: str, more: Mapping[str, Any] | None = None, **options: Any) -> Case:
    """LoRA on the architecture's own targets, where `options` do not say others."""
    own = {"target_modules": _targets(architecture)} | ({"lora_dropout": 0.0} if architecture in _MOE else {})
    return Case(architecture, name, lora(**(own | options)), **(more or {}))


def _with(architecture: str, name: str, *modules: str) -> Case:
    """LoRA on these modules, too."""
    return _on(architecture, name, target_modules=[*_targets(architecture), *modules])


def _of_transformers_4(router: str, names: tuple[str, str, str], inner: int) -> Callable[[Path], None]:
    """LoRA on the experts as transformers 4 had them, each a module with three layers."""

    def change(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        generator = torch.Generator().manual_seed(5)
        for layer in range(2):
            for expert in range(4):
                for name, (inputs, outputs) in zip(names, ((32, inner), (32, inner), (inner, 32)), strict=True):
                    start = f"base_model.model.model.layers.{layer}.{router}.experts.{expert}.{name}"
                    tensors[f"{start}.lora_A.weight"] = torch.randn(3, inputs, generator=generator) / 5
                    tensors[f"{start}.lora_B.weight"] = torch.randn(outputs, 3, generator=generator) / 5
        save_file(tensors, file)
        settings = json.loads((folder / "adapter_config.json").read_text())
        settings["target_modules"] = [*_QV, *names]
        (folder / "adapter_config.json").write_text(json.dumps(settings))

    return change


def _pickled(folder: Path) -> None:
    """As PEFT saved adapters before it had safetensors."""
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def _plain() -> Iterator[Case]:
    """Query and value on every architecture; and for each something else that its users do."""
    for name in ARCHITECTURES:
        yield _on(name, "q,v")
    for name in ("Llama", "Qwen2", "Qwen3-MoE", "Mixtral", "GPT-2", "GPT-NeoX", "OPT", "Gemma 2", "Falcon", "Bloom"):
        yield _on(name, "all-linear", target_modules="all-linear")
    for name in ("Phi-3 (longrope)", "BERT", "DeBERTa-v3", "ModernBERT", "T5", "BART", "Longformer", "Qwen2-MoE"):
        yield _on(name, "all-linear", target_modules="all-linear")
    for name in ("Llama", "Gemma 3", "GPT-2", "OPT", "Qwen2.5-VL, texts", "BERT", "T5", "MPNet"):
        yield _on(name, "DoRA", use_dora=True)
    for name in ("Mistral", "Qwen3", "GPT-J", "Mamba", "RoBERTa", "DistilBERT", "BART", "DeBERTa-v2"):
        yield _on(name, "saved norms", modules_to_save=[ARCHITECTURES[name].norm])
    for name in ("Qwen2", "GPT-NeoX", "Phi-2", "BERT", "OPT", "Bloom", "ELECTRA"):
        yield _on(name, "biases", bias="lora_only")


def _vocabularies() -> Iterator[Case]:
    grown, tied = {"tokens": GROWN}, {"settings": {"tie_word_embeddings": True}}
    for name in ("Llama", "Qwen2", "Gemma 3"):
        yield _on(name, "extended vocabulary", grown)
        yield _on(name, "extended, embeddings and head saved", grown, modules_to_save=["embed_tokens", "lm_head"])
    less = {"settings": {"vocab_size": GROWN}, "tokens": WORDS}
    yield _on("Llama", "reduced vocabulary", less)
    new = list(range(WORDS, GROWN))
    yield _on("Llama", "extended, new tokens trained", grown, trainable_token_indices=new)
    yield _on("Llama", "extended, tied to the head", grown | tied)
    yield _on("Llama", "trainable tokens", trainable_token_indices=[5, 9, 17])
    yield _on("Qwen2", "trainable tokens, tied", tied, trainable_token_indices=[5, 9, 17])
    yield _on("BERT", "saved embeddings", modules_to_save=["word_embeddings"])
    yield _on("GPT-2", "saved embeddings, tied", modules_to_save=["wte"])
    yield _with("Llama", "LoRA on the embeddings", "embed_tokens")
    yield _with("Gemma 3", "LoRA on the embeddings", "embed_tokens")
    yield _with("GPT-2", "LoRA on the embeddings, tied", "wte")
    yield _with("Llama", "LoRA on the head", "lm_head")
    yield _with("Mistral", "LoRA on embeddings and head", "embed_tokens", "lm_head")
    yield Case(
        "Llama",
        "trainable tokens alone",
        other("TrainableTokensConfig", target_modules=["embed_tokens"], token_indices=list(range(4, 50))),
    )


def _variants() -> Iterator[Case]:
    """Kinds of LoRA."""
    blockwise = BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
    yield _on("Llama", "rsLoRA", use_rslora=True)
    yield _on(
        "Llama", "a rank for each layer", rank_pattern={"layers.0.self_attn.q_proj": 5}, alpha_pattern={"v_proj": 9}
    )
    yield _on("Llama", "BD-LoRA", target_modules=["q_proj", "o_proj"], r=4, use_bdlora=blockwise)
    yield _on("Llama", "KaSA", kasa_config=KasaConfig())
    yield _on("Llama", "biases of its own", lora_bias=True)
    yield _on("Llama", "some layers", layers_to_transform=[1])
    yield _on("Llama", "PiSSA", init_lora_weights="pissa")
    yield _on("Llama", "OLoRA", init_lora_weights="olora")
    yield _on("Llama", "MiCA", init_lora_weights="mica")
    yield _on("Qwen3-MoE", "fused experts", target_parameters=_FUSED)
    yield _on("Mixtral", "fused experts alone", target_modules=[], target_parameters=_FUSED)
    yield _on("Qwen3-MoE", "its router", target_parameters=["mlp.gate.weight"])
    yield _on("Qwen2-MoE", "its shared expert", target_modules=["shared_expert.up_proj", "shared_expert.down_proj"])
    mixtral, qwen = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")
    for name, change in {
        "Mixtral": _of_transformers_4("block_sparse_moe", mixtral, 48),
        "Qwen3-MoE": _of_transformers_4("mlp", qwen, 16),
    }.items():
        yield _on(name, "experts of transformers 4", {"saved": change})


def _kinds() -> Iterator[Case]:
    """PEFT's other kinds of adapters."""
    for name, adapter in {
        "IA3": other("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "AdaLoRA": other("AdaLoraConfig", init_r=4, total_step=10),
        "LoHa": other("LoHaConfig", r=3),
        "LoKr": other("LoKrConfig", r=3),
        "OFT": other("OFTConfig", oft_block_size=4),
        "VeRA": other("VeraConfig", r=8, target_modules=["q_proj"]),
        "HRA": other("HRAConfig", r=4),
        "FourierFT": other("FourierFTConfig", n_frequency=20),
        "LN tuning": other("LNTuningConfig", target_modules=["input_layernorm"]),
        "C3A": other("C3AConfig", block_size=8, target_modules=["q_proj"]),
        "RandLoRA": other("RandLoraConfig", r=4, target_modules=["q_proj"]),
        "RoAd": other("RoadConfig", group_size=8, target_modules=["q_proj"]),
        "DeLoRA": other("DeloraConfig", r=3),
        "MiSS": other("MissConfig", r=4),
        "WaveFT": other("WaveFTConfig", n_frequency=20, target_modules=["q_proj"]),
    }.items():
        yield Case("Llama", name, adapter)
    for name, adapter in {
        "BOFT": other("BOFTConfig", boft_block_size=4),
        "SHiRA": other("ShiraConfig", r=2),
    }.items():
        yield Case("Llama", name, adapter, refused="PEFT cannot lay it out without the base's weights")
    drawn = {"refused": "draws another base at every load"}
    yield _on("Llama", "PiSSA by iterations", drawn, init_lora_weights="pissa_niter_4")


def _whole() -> Iterator[Case]:
    """Models that were trained themselves."""
    for name in ("Llama", "GPT-2", "BERT", "T5"):
        yield Case(name, "all of it trained", None)


def _files() -> Iterator[Case]:
    """Adapters whose files are other than PEFT writes them now."""
    yield _on("Llama", "pickled", {"saved": _pickled})
    yield _on("Llama", "extended vocabulary, pickled", {"saved": _pickled, "tokens": GROWN})


def _commands() -> Iterator[Case]:
    yield _on("Llama", "q,v, by the command", {"command": True})
    yield _on("ConvBERT", "q,v, by the command", {"command": True})
    yield Case("GPT-2", "all of it trained, by the command", None, command=True)


CASES: list[Case] = [*_plain(), *_vocabularies(), *_variants(), *_kinds(), *_whole(), *_files(), *_commands()]
