"""Small models with adapters, made on the spot and saved as their users save them; and rows for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from datainf_ray.config import ModelConfig
from datainf_ray.model.load import load_replica
from datainf_ray.model.replica import Replica
from datainf_ray.tasks.register import task_of
from datainf_ray.tasks.task import Task

WORDS = 60  # the tiny vocabulary: w0 to w59 behind the special tokens
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = WORDS + len(SPECIAL)

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    ),
    "bert": lambda: BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
        max_position_embeddings=64, pad_token_id=0,
    ),
    "roberta": lambda: RobertaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
        max_position_embeddings=66, pad_token_id=0, type_vocab_size=1,
    ),
    "t5": lambda: T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0,
    ),
    "bart": lambda: BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    ),
}  # fmt: skip

ATTENTION = {
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "t5": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
}
_KINDS = {
    "causal-lm": TaskType.CAUSAL_LM,
    "sequence-classification": TaskType.SEQ_CLS,
    "seq2seq-lm": TaskType.SEQ_2_SEQ_LM,
}


def task_name(arch: str) -> str:
    """What a model of this name is for: llama is a language model, llama-classifier none."""
    if arch in ("t5", "bart"):
        return "seq2seq-lm"
    return "sequence-classification" if arch in ("bert", "roberta") or "-" in arch else "causal-lm"


def tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """Whole words; a BOS in front, as Llama's has."""
    words = {word: k for k, word in enumerate((*SPECIAL, *(f"w{i}" for i in range(WORDS))))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=side,
    )


def save_model(
    folder: Path,
    arch: str,
    targets: str | list[str] | None = None,
    *,
    side: str = "right",
    seed: int = 0,
    labels: int = 3,
    lora: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    adapter_name: str = "default",
) -> dict[str, Any]:
    """Save a random base and a random adapter; returns the `model` part of a configuration."""
    torch.manual_seed(seed)
    kind, arch = task_name(arch), arch.partition("-")[0]
    config = CONFIGS[arch]()
    for key, value in (settings or {}).items():
        setattr(config, key, value)
    if kind == "sequence-classification":
        config.num_labels = labels
    base = task(kind).model_class().from_config(config)
    base.save_pretrained(folder / "base")
    tokenizer(side).save_pretrained(folder / "base")
    options = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": targets or ATTENTION[arch]} | (
        lora or {}
    )
    model = get_peft_model(base, LoraConfig(task_type=_KINDS[kind], **options), adapter_name=adapter_name)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_" in name and "magnitude" not in name):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    adapter = folder / "adapter" if adapter_name == "default" else folder / "adapter" / adapter_name
    return {
        "base": str(folder / "base"),
        "adapter": str(adapter),
        "task": kind,
    }


def task(name: str) -> Task:
    return task_of(ModelConfig(base="b", adapter="a", task=name))


def replica(model: dict[str, Any], *device: str, **options: Any) -> Replica:
    """The replica of the `model` part of a configuration."""
    return load_replica(ModelConfig(**model), task(model["task"]), *device, **options)


def words(generator: torch.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in torch.randint(0, WORDS, (count,), generator=generator).tolist())


def write_rows(path: Path, count: int, seed: int, labels: int | None = None, longest: int = 20) -> Path:
    """JSONL rows of 2 to `longest` random words, with prompt and completion or with text and label.

    A completion begins with a space, so that the tokens of both together are those of each.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest, (count,), generator=generator).tolist()
    lines = []
    for k, length in enumerate(lengths):
        row: dict[str, Any] = {"name": f"row-{k}"}
        if labels is None:
            row |= {"prompt": words(generator, 2), "completion": " " + words(generator, length)}
        else:
            row |= {"text": words(generator, length), "label": k % labels}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def configuration(folder: Path, model: dict[str, Any], output: Path | str, **more: Any) -> dict[str, Any]:
    """A run of `folder`'s train.jsonl and queries.jsonl on a small local Ray."""
    return {
        "model": model,
        "train": {"path": str(folder / "train.jsonl"), "id": "name"},
        "queries": {"path": str(folder / "queries.jsonl"), "id": "name"},
        "cluster": {"chunk_rows": 8, "batch_tokens": 60, "max_workers": 1},
        "output": str(output),
        **more,
    }
