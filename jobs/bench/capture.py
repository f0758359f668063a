"""The first sweep over a training step on the same batches, for adapters of other kinds than LoRA on linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bench.measure import Figure, Options, say
from bench.models import RANK, Shape
from bench.sweep import over_step
from datainf_ray.model.quiet import quiet
from datainf_ray.model.replica import Replica
from datainf_ray.tasks.causal_lm import TASK as CAUSAL

SHAPES = {256: (Shape(256, 4), 8_192), 512: (Shape(512, 3), 4_096), 1024: (Shape(1024, 2), 2_048)}
SMALL = {32: (Shape(32, 1, vocabulary=64), 256)}
QV = ["q_proj", "v_proj"]
EXPERTS, CHOSEN = 8, 2


@dataclass(frozen=True)
class Kind:
    """An adapter: what it is on, the base, and the aim."""

    options: dict[str, Any]
    aim: float | None
    base: Callable[[Shape], Any] = lambda shape: shape.build(torch.float32, "cpu")


def mixture(shape: Shape) -> Any:
    """A Qwen3-MoE as large as the Llama, of whose experts each token uses so many as are as wide as its one layer."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11 // 4,
        moe_intermediate_size=shape.hidden * 11 // 4 // CHOSEN,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,  # type: ignore[call-arg]  # of the class: it takes all names
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


KINDS = {
    "q,v": Kind({"target_modules": QV}, 0.9),
    "all linear": Kind({"target_modules": "all-linear"}, 0.9),
    "DoRA on all linear": Kind({"target_modules": "all-linear", "use_dora": True}, 0.7),
    "q,v and experts": Kind(
        {"target_modules": QV, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}, 0.7, mixture
    ),
    "q,v and a saved embedding": Kind({"target_modules": QV, "modules_to_save": ["embed_tokens"]}, None),
}


def capture(options: Options) -> Iterator[Figure]:
    """Tokens per second of the first sweep over those of training, for every hidden size and kind of adapter."""
    torch.set_num_threads(options.threads or 1)
    for hidden, (shape, tokens) in (SMALL if options.small else SHAPES).items():
        for name, kind in KINDS.items():
            case = f"hidden {hidden}, r={RANK}, {name}"
            say(f"capture: {case}")
            yield _one(options, case, shape, kind, tokens)


def adapted(shape: Shape, kind: Kind) -> PeftModel:
    """The base with a random adapter: always the same one, and none of its tensors zero."""
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, **kind.options)
    with quiet():
        model = get_peft_model(kind.base(shape), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def _one(options: Options, case: str, shape: Shape, kind: Kind, tokens: int) -> Figure:
    replica, trained = Replica(adapted(shape, kind), CAUSAL), adapted(shape, kind).train()
    assert replica.path == "hooks", replica.reason
    queries = min(options.queries, 10)  # an embedding's are large: with 50 they would be all that is measured
    return over_step("capture", case, options, (replica, trained), shape, tokens, queries, kind.aim)
