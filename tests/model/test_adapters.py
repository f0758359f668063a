"""Every kind of adapter on a small model in float64, by hooks, against plain autograd on each row alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig

from datainf_ray.model.blocks import name_blocks
from datainf_ray.model.replica import Replica
from datainf_ray.model.sites import find_sites
from tests import reference, tiny
from tests.model.compare import captured, examples_of, relative

QV = ["q_proj", "v_proj"]
TIED = {"tie_word_embeddings": True}
SHARED = ["shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"]
FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
Rows = list[dict[str, Any]]


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": tiny.VOCABULARY}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MORE: dict[str, Callable[[], Any]] = {
    "opt": lambda: transformers.OPTConfig(
        **SIZES, **IDS, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64
    ),
    "qwen2moe": lambda: transformers.Qwen2MoeConfig(
        **SIZES, **IDS, num_key_value_heads=2, intermediate_size=48, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=24, max_position_embeddings=64,
    ),
    "qwen3moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, **IDS, num_key_value_heads=2, head_dim=8, intermediate_size=48, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, max_position_embeddings=64,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZES, **IDS, num_key_value_heads=2, head_dim=8, intermediate_size=20, num_local_experts=4,
        max_position_embeddings=64,
    ),
    "gptoss": lambda: transformers.GptOssConfig(
        **SIZES, **IDS, num_key_value_heads=2, head_dim=8, intermediate_size=20, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=64,
    ),
    "deepseekv3": lambda: transformers.DeepseekV3Config(
        **SIZES, **IDS, num_key_value_heads=4, intermediate_size=48, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, n_shared_experts=1, max_position_embeddings=64,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, **IDS, num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=64
    ),
    "longformer-classifier": lambda: transformers.LongformerConfig(
        **SIZES, **IDS, intermediate_size=48, max_position_embeddings=66, attention_window=4
    ),
}  # fmt: skip


MOE = ("qwen2moe", "qwen3moe", "mixtral", "gptoss", "deepseekv3")


@dataclass(frozen=True)
class Kind:
    """A kind of adapter: PEFT's configuration, the model it is on, and how near in float64 it comes."""

    adapter: Callable[..., Any]
    arch: str = "llama"
    settings: dict[str, Any] = field(default_factory=dict)  # of the model's configuration
    near: float = 1e-9


def lora(**options: Any) -> Callable[..., Any]:
    return lambda task: LoraConfig(task_type=task, **({"r": 3, "lora_alpha": 6, "target_modules": QV} | options))


def other(name: str, **options: Any) -> Callable[..., Any]:
    return lambda task: getattr(peft, name)(task_type=task, **({"target_modules": QV} | options))


KINDS: dict[str, Kind] = {
    "LoRA": Kind(lora(target_modules="all-linear")),
    "LoRA with biases of its own": Kind(lora(lora_bias=True)),
    "saved norms": Kind(lora(modules_to_save=["input_layernorm", "norm"])),
    "saved embedding": Kind(lora(modules_to_save=["embed_tokens"])),
    "saved embedding and head": Kind(lora(modules_to_save=["embed_tokens", "lm_head"])),
    "biases and layer norms": Kind(lora(target_modules=["c_attn"], fan_in_fan_out=True, bias="all"), "gpt2"),
    "a saved layer norm of BERT": Kind(lora(target_modules=["query"], modules_to_save=["LayerNorm"]), "bert"),
    "IA3": Kind(other("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "LoHa": Kind(other("LoHaConfig", r=3)),
    "LoKr": Kind(other("LoKrConfig", r=3)),
    "OFT": Kind(other("OFTConfig", oft_block_size=4)),
    "VeRA": Kind(other("VeraConfig", r=8, target_modules=["q_proj"])),
    "AdaLoRA": Kind(other("AdaLoraConfig", init_r=4, total_step=10)),
    "BD-LoRA": Kind(
        lora(
            target_modules=["q_proj", "o_proj"],
            r=4,
            use_bdlora=BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2),
        )
    ),
    "KaSA": Kind(lora(kasa_config=KasaConfig())),
    "trainable tokens": Kind(lora(trainable_token_indices=[5, 9, 17])),
    "trainable tokens of a tied head": Kind(lora(trainable_token_indices=[5, 9, 17]), settings=TIED),
    "saved embedding, tied to the head": Kind(
        lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), settings=TIED
    ),
    "DoRA": Kind(lora(use_dora=True, target_modules="all-linear")),
    "DoRA on linear layers with biases": Kind(lora(use_dora=True, target_modules=["query", "value"]), "bert"),
    "DoRA of GPT-2's linear layers": Kind(lora(use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True), "gpt2"),
    "DoRA on an embedding": Kind(lora(use_dora=True, target_modules=["embed_tokens"])),
    "LoRA on an embedding": Kind(lora(target_modules=["embed_tokens", "q_proj"])),
    "LoRA on GPT-2's embedding, which is tied": Kind(lora(target_modules=["wte", "c_attn"]), "gpt2"),
    "LoRA on the head": Kind(lora(target_modules=["lm_head", "q_proj"])),
    "DoRA of OPT's fc1 and fc2": Kind(lora(use_dora=True, target_modules=["fc1", "fc2"]), "opt"),
    "OPT's fc1 and fc2, rows end to end": Kind(lora(target_modules=["fc1", "fc2"]), "opt"),
    "a shared expert, rows end to end": Kind(lora(target_modules=SHARED), "qwen2moe"),
    "fused experts, both weights": Kind(lora(target_parameters=FUSED), "qwen3moe"),
    "fused experts, one weight": Kind(lora(target_parameters=FUSED[1:]), "mixtral"),
    "fused experts and nothing else": Kind(lora(target_modules=[], target_parameters=FUSED), "qwen3moe"),
    "fused experts that lie transposed, with biases": Kind(lora(target_parameters=FUSED), "gptoss"),
    "a router": Kind(lora(target_parameters=["mlp.gate.weight"]), "qwen3moe"),
    "DeepSeek's experts, and its router, which lays its rows end to end": Kind(
        lora(target_modules="all-linear", target_parameters=FUSED),
        "deepseekv3",
        near=1e-6,  # it routes in float32
    ),
    "GPT-2's positions": Kind(lora(target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["wpe"]), "gpt2"),
    "LoRA on GPT-2's positions": Kind(lora(target_modules=["c_attn", "wpe"], fan_in_fan_out=True), "gpt2"),
    "BERT's positions": Kind(lora(target_modules=["query"], modules_to_save=["position_embeddings"]), "bert"),
    "a saved multilayer perceptron": Kind(lora(modules_to_save=["mlp"])),
    "trainable tokens of scaled embeddings": Kind(lora(trainable_token_indices=[5, 9]), "gemma3"),
    "LoRA on scaled embeddings": Kind(lora(target_modules=["embed_tokens", "q_proj"]), "gemma3"),
    "a router that is saved": Kind(lora(modules_to_save=["gate"]), "qwen3moe"),
    "BOFT": Kind(other("BOFTConfig", boft_block_size=4)),
    "HRA": Kind(other("HRAConfig", r=4)),
    "MiSS": Kind(other("MissConfig", r=4)),
    "RandLoRA": Kind(other("RandLoraConfig", r=4, target_modules=["q_proj"])),
    "SHiRA": Kind(other("ShiraConfig", r=2)),
    "Longformer, the sequence first": Kind(lora(target_modules=["query", "value"]), "longformer-classifier"),
    "LN tuning": Kind(other("LNTuningConfig", target_modules=["input_layernorm"])),
}


def made(kind: Kind) -> PeftModel:
    """A random model with a random adapter of a kind, in float64."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny.CONFIGS[kind.arch]()) if kind.arch in tiny.CONFIGS else MORE[kind.arch]()
    for key, value in kind.settings.items():
        setattr(config, key, value)
    task = tiny.task_name(kind.arch)
    config.num_labels = 3 if task == "sequence-classification" else config.num_labels
    config._attn_implementation = "eager"
    base = tiny.task(task).model_class().from_config(config)
    if kind.arch in MOE:
        base.set_experts_implementation("eager")  # the others multiply no float64
    for parameter in base.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model = get_peft_model(base, kind.adapter(tiny._KINDS[task])).double().eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def rows_of(kind: Kind) -> Rows:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for k, n in enumerate((9, 4, 12, 7, 12)):
        ids = torch.randint(4, tiny.VOCABULARY, (n,), generator=generator).tolist()
        labels = k % 3 if tiny.task_name(kind.arch) == "sequence-classification" else [-100, -100, *ids[2:]]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


@pytest.mark.parametrize("name", KINDS)
def test_every_rows_gradient_is_autograds(name: str) -> None:
    kind = KINDS[name]
    model, rows = made(kind), rows_of(kind)
    want = reference.gradients(copy.deepcopy(model), rows)
    assert max(float(g.norm()) for g in want.values()) > 1e-3
    replica = Replica(model, tiny.task(tiny.task_name(kind.arch)))
    assert replica.reason is None
    for size in (1, 3, 5):
        got, _ = captured(replica, examples_of(rows), size, dtype=torch.float64)
        for (block, g), w in zip(got.items(), want.values(), strict=True):
            assert relative(g, w) < kind.near, (block, size)


@pytest.mark.parametrize(
    ("name", "samplers"),
    [
        ("LoRA", {"linear"}),
        ("DoRA", {"linear", "magnitude"}),
        ("DoRA on an embedding", {"dora", "generic"}),
        ("LoRA on an embedding", {"linear", "lora"}),
        ("trainable tokens", {"linear", "trained_tokens"}),
        ("trainable tokens of a tied head", {"linear", "trained_tokens", "generic"}),
        ("KaSA", {"linear", "generic"}),
        ("a saved layer norm of BERT", {"linear", "normed"}),
    ],
)
def test_formulas_are_used_where_there_are_some(name: str, samplers: set[str]) -> None:
    model = made(KINDS[name])
    sites = find_sites(model, name_blocks(model))
    assert not isinstance(sites, str)
    assert {site.sampler.__name__ for site in sites} == samplers


def test_a_magnitude_that_is_zero_is_not_divided_by() -> None:
    model, rows = made(KINDS["DoRA"]), rows_of(KINDS["DoRA"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter[1] = 0
    want = reference.gradients(copy.deepcopy(model), rows)
    replica = Replica(model, tiny.task("causal-lm"))
    got, _ = captured(replica, examples_of(rows), 3, dtype=torch.float64)
    for g, w in zip(got.values(), want.values(), strict=True):
        assert relative(g, w) < 1e-9
