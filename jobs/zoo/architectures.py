"""Architectures at their smallest: how each is made, what it is for, and the layers that adapters of it are put on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as t

WORDS, LIMIT = 97, 64  # tokens of the vocabulary; positions

CAUSAL, CLASSIFIER, SEQ2SEQ = "causal-lm", "sequence-classification", "seq2seq-lm"

_BOTH: dict[str, Any] = {"vocab_size": WORDS, "max_position_embeddings": LIMIT, "pad_token_id": 1}
_HEADS: dict[str, Any] = _BOTH | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER = _HEADS | {"intermediate_size": 48}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2}
_EXPERTS = _DECODER | {"num_experts_per_tok": 2}
_LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 8.0],
    "original_max_position_embeddings": 12,
}  # fmt: skip
_DEBERTA = _ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_DEBERTA_3 = _DEBERTA | {
    "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 32}
_CLIP: dict[str, Any] = _VISION | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
_QWEN = _VISION | {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
_IMAGES: dict[str, Any] = {
    "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93
}  # fmt: skip
_LINEAR = {
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_MULTIMODAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_QV, _PROJ = ("query", "value"), ("q_proj", "v_proj")


@dataclass(frozen=True)
class Architecture:
    """`config` makes transformers' configuration of the smallest such model; the rest are names of its layers."""

    config: Callable[[], Any]
    targets: tuple[str, ...] | str = _PROJ  #: of plain LoRA: query and value, or what comes nearest
    task: str = CAUSAL
    norm: str = ""  #: what its norms are called
    base_class: str = ""  #: transformers' class that the base was trained with, where it is not the task's own

    def auto_class(self) -> Any:
        name = {CAUSAL: "CausalLM", CLASSIFIER: "SequenceClassification", SEQ2SEQ: "Seq2SeqLM"}[self.task]
        return getattr(t, self.base_class or f"AutoModelFor{name}")


def _text(config: Callable[[], Any], targets: tuple[str, ...] | str = _PROJ, norm: str = "") -> Architecture:
    return Architecture(config, targets, CAUSAL, norm)


def _classifier(config: Callable[[], Any], targets: tuple[str, ...] = _QV, norm: str = "LayerNorm") -> Architecture:
    return Architecture(config, targets, CLASSIFIER, norm)


def _seen(config: Callable[[], Any]) -> Architecture:
    """A model of images and texts, fine-tuned on texts alone."""
    text = r".*(language_model|text_model).*\.(q_proj|v_proj)"
    return Architecture(config, text, CAUSAL, "", "AutoModelForImageTextToText")


ARCHITECTURES: dict[str, Architecture] = {
    "Llama": _text(lambda: t.LlamaConfig(**_DECODER), norm="input_layernorm"),
    "Mistral": _text(lambda: t.MistralConfig(**_DECODER, sliding_window=8), norm="post_attention_layernorm"),
    "Qwen2": _text(lambda: t.Qwen2Config(**_DECODER), norm="norm"),
    "Qwen3": _text(lambda: t.Qwen3Config(**_DECODER, head_dim=8), norm="q_norm"),
    "Qwen3-MoE": _text(
        lambda: t.Qwen3MoeConfig(**_EXPERTS | {"head_dim": 8}, num_experts=4, moe_intermediate_size=16), norm="norm"
    ),
    "Qwen2-MoE": _text(
        lambda: t.Qwen2MoeConfig(
            **_EXPERTS, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24
        )
    ),
    "Mixtral": _text(lambda: t.MixtralConfig(**_EXPERTS, num_local_experts=4)),
    "GPT-OSS": _text(lambda: t.GptOssConfig(**_EXPERTS, head_dim=8, num_local_experts=4)),
    "DeepSeek-V3": _text(
        lambda: t.DeepseekV3Config(
            **_EXPERTS | {"num_key_value_heads": 4},
            n_routed_experts=4,
            moe_intermediate_size=16,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            v_head_dim=8,
            qk_nope_head_dim=8,
            n_shared_experts=1,
        ),
        ("q_a_proj", "kv_b_proj"),
        "kv_a_layernorm",
    ),
    "GPT-2": _text(
        lambda: t.GPT2Config(
            vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=LIMIT, bos_token_id=0, eos_token_id=2
        ),
        ("c_attn",),
        "ln_1",
    ),
    "GPT-NeoX": _text(lambda: t.GPTNeoXConfig(**_ENCODER), ("query_key_value",), "input_layernorm"),
    "GPT-J": _text(
        lambda: t.GPTJConfig(
            vocab_size=WORDS,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=LIMIT,
            rotary_dim=8,
            bos_token_id=0,
            eos_token_id=2,
        ),
        norm="ln_1",
    ),
    "OPT": _text(lambda: t.OPTConfig(**_HEADS, ffn_dim=48, word_embed_proj_dim=32), norm="self_attn_layer_norm"),
    "Phi-2": _text(lambda: t.PhiConfig(**_DECODER), norm="input_layernorm"),
    "Phi-3 (longrope)": _text(
        lambda: t.Phi3Config(**_DECODER, original_max_position_embeddings=12, rope_parameters=_LONG), ("qkv_proj",)
    ),
    "Gemma 2": _text(lambda: t.Gemma2Config(**_DECODER, head_dim=8, sliding_window=8), norm="input_layernorm"),
    "Gemma 3": _text(lambda: t.Gemma3TextConfig(**_DECODER, head_dim=8, sliding_window=8), norm="q_norm"),
    "Falcon": _text(
        lambda: t.FalconConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=2,
        ),
        ("query_key_value",),
        "input_layernorm",
    ),
    "Bloom": _text(
        lambda: t.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, pad_token_id=1),
        ("query_key_value",),
        "input_layernorm",
    ),
    "Mamba": _text(
        lambda: t.MambaConfig(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4, pad_token_id=1
        ),
        ("in_proj", "x_proj"),
        "norm",
    ),
    "RWKV": _text(
        lambda: t.RwkvConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
        ("key", "value"),
        "ln1",
    ),
    "OLMo 2": _text(lambda: t.Olmo2Config(**_DECODER), norm="post_attention_layernorm"),
    "Cohere": _text(lambda: t.CohereConfig(**_DECODER), norm="input_layernorm"),
    "StableLM": _text(lambda: t.StableLmConfig(**_DECODER), norm="input_layernorm"),
    "Granite": _text(lambda: t.GraniteConfig(**_DECODER, logits_scaling=2.0), norm="input_layernorm"),
    "BERT": _classifier(lambda: t.BertConfig(**_ENCODER)),
    "RoBERTa": _classifier(lambda: t.RobertaConfig(**_ENCODER)),
    "CamemBERT": _classifier(lambda: t.CamembertConfig(**_ENCODER)),
    "LUKE": _classifier(lambda: t.LukeConfig(**_ENCODER, entity_vocab_size=9, entity_emb_size=8)),
    "DistilBERT": _classifier(
        lambda: t.DistilBertConfig(
            vocab_size=WORDS,
            dim=32,
            hidden_dim=48,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=LIMIT,
            pad_token_id=1,
        ),
        ("q_lin", "v_lin"),
        "sa_layer_norm",
    ),
    "DeBERTa-v3": _classifier(lambda: t.DebertaV2Config(**_DEBERTA_3), ("query_proj", "value_proj")),
    "DeBERTa-v2": _classifier(lambda: t.DebertaV2Config(**_DEBERTA), ("query_proj", "value_proj")),
    "ELECTRA": _classifier(lambda: t.ElectraConfig(**_ENCODER, embedding_size=16)),
    "MPNet": _classifier(lambda: t.MPNetConfig(**_ENCODER), ("q", "v")),
    "XLNet": _classifier(
        lambda: t.XLNetConfig(vocab_size=WORDS, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=1),
        ("layer_1",),
        "layer_norm",
    ),
    "ESM": _classifier(
        lambda: t.EsmConfig(**_ENCODER, mask_token_id=2, position_embedding_type="rotary", token_dropout=True)
    ),
    "Longformer": _classifier(lambda: t.LongformerConfig(**_ENCODER, attention_window=8)),
    "ConvBERT": _classifier(lambda: t.ConvBertConfig(**_ENCODER, embedding_size=16)),
    "ModernBERT": _classifier(
        lambda: t.ModernBertConfig(**_ENCODER, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2),
        ("Wqkv",),
        "attn_norm",
    ),
    "ALBERT": _classifier(lambda: t.AlbertConfig(**_ENCODER, embedding_size=16)),
    "Llama, a classifier": Architecture(lambda: t.LlamaConfig(**_DECODER), _PROJ, CLASSIFIER, "input_layernorm"),
    "T5": Architecture(lambda: t.T5Config(**_T5), ("q", "v"), SEQ2SEQ, "layer_norm"),
    "BART": Architecture(
        lambda: t.BartConfig(
            vocab_size=WORDS,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=LIMIT,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        ),
        _PROJ,
        SEQ2SEQ,
        "final_layer_norm",
    ),
    "Qwen2.5-VL, texts": _seen(
        lambda: t.Qwen2_5_VLConfig(
            text_config=_DECODER | _MULTIMODAL, vision_config=_QWEN | {"fullatt_block_indexes": [0]}, **_IMAGES
        )
    ),
    "Qwen3.5, texts": _seen(
        lambda: t.Qwen3_5Config(
            text_config=_DECODER | _LINEAR, vision_config=_QWEN | {"num_position_embeddings": 16}, **_IMAGES
        )
    ),
    "LLaVA, texts": _seen(
        lambda: t.LlavaConfig(
            text_config=t.LlamaConfig(**_DECODER), vision_config=t.CLIPVisionConfig(**_CLIP), image_token_index=90
        )
    ),
    "Gemma 3, texts": _seen(
        lambda: t.Gemma3Config(
            text_config=_DECODER | {"head_dim": 8, "sliding_window": 8},
            vision_config=_CLIP,
            image_token_index=90,
            mm_tokens_per_image=4,
        )
    ),
}
