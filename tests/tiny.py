"""Small models with adapters, made on the spot and saved as their users save them; and rows for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

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
}  # fmt: skip

ATTENTION = {
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}


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
    arch, _, head = arch.partition("-")
    classify = arch in ("bert", "roberta") or bool(head)
    config = CONFIGS[arch]()
    for key, value in (settings or {}).items():
        setattr(config, key, value)
    if classify:
        config.num_labels = labels
    base = (AutoModelForSequenceClassification if classify else AutoModelForCausalLM).from_config(config)
    base.save_pretrained(folder / "base")
    tokenizer(side).save_pretrained(folder / "base")
    options = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": targets or ATTENTION[arch]} | (
        lora or {}
    )
    kind = TaskType.SEQ_CLS if classify else TaskType.CAUSAL_LM
    model = get_peft_model(base, LoraConfig(task_type=kind, **options), adapter_name=adapter_name)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_" in name and "magnitude" not in name):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    adapter = folder / "adapter" if adapter_name == "default" else folder / "adapter" / adapter_name
    return {
        "base": str(folder / "base"),
        "adapter": str(adapter),
        "task": "sequence-classification" if classify else "causal-lm",
    }


def words(generator: torch.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in torch.randint(0, WORDS, (count,), generator=generator).tolist())


def write_rows(path: Path, count: int, seed: int, labels: int | None = None, longest: int = 20) -> Path:
    """JSONL rows of 2 to `longest` random words, with prompt and completion or with text and label."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest, (count,), generator=generator).tolist()
    lines = []
    for k, length in enumerate(lengths):
        row: dict[str, Any] = {"name": f"row-{k}"}
        if labels is None:
            row |= {"prompt": words(generator, 2), "completion": words(generator, length)}
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
