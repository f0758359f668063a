"""Random Llama-shaped models with LoRA adapters, rows for them, and the two things that are compared on their batches.

Needs torch, transformers, peft and pyarrow, and nothing of datainf_ray that needs Ray: so it runs on
a bare GPU machine too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from datainf_ray.corpus.batches import Batch
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Curvature, Fold, Statistic, Statistics
from datainf_ray.model.quiet import quiet
from datainf_ray.model.replica import Replica
from datainf_ray.tasks.causal_lm import TASK as CAUSAL

#: What the adapter is on, in the names that PEFT takes.
TARGETS: dict[str, str | list[str]] = {"q,v": ["q_proj", "v_proj"], "all linear": "all-linear"}
RANK = 8
NODES = 2  # values of the damping that the curvature is summed at: what the pilot asks for where nothing is unusual
_FIRST_WORD = 2  # ids below are <s> and </s>


@dataclass(frozen=True)
class Shape:
    """The size of a Llama."""

    hidden: int
    layers: int
    vocabulary: int = 2048
    intermediate: int = 0  # 0: 2.75 times hidden
    heads: int = 8
    kv_heads: int = 8
    tied: bool = False

    def build(self, dtype: torch.dtype, device: torch.device | str) -> Any:
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate or self.hidden * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=8192,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=self.tied,
        )
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)


def with_adapter(base: Any, targets: str | list[str]) -> PeftModel:
    """The base with a random adapter, ready to be trained. Its lora_B is not zero: then lora_A has gradients too."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=targets)
    with quiet():
        model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def pair(
    shape: Shape,
    targets: str | list[str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Replica, PeftModel]:
    """The same model twice: as our replica, and as one that is trained."""
    torch.manual_seed(0)
    ours = Replica(with_adapter(shape.build(dtype, device), targets), CAUSAL)
    torch.manual_seed(0)
    return ours, with_adapter(shape.build(dtype, device), targets).train()


def lengths(rows: int, seed: int, median: int = 48, shortest: int = 16, longest: int = 192) -> list[int]:
    """Log-normal, as lengths of text are."""
    drawn = np.random.default_rng(seed).normal(np.log(median), 0.6, rows)
    return [int(n) for n in np.clip(np.exp(drawn), shortest, longest)]


def token_rows(tokens: Sequence[int], vocabulary: int, seed: int) -> list[list[int]]:
    """Rows of random ids, of the lengths that are given."""
    generator = np.random.default_rng(seed)
    return [generator.integers(_FIRST_WORD, vocabulary, n).tolist() for n in tokens]


def full_batch(b: int, s: int, vocabulary: int, first: int, device: torch.device) -> Batch:
    """b rows of s random tokens each, without padding; every token is a target. The rows' numbers begin at `first`."""
    ids = torch.randint(_FIRST_WORD, vocabulary, (b, s), generator=torch.Generator().manual_seed(first))
    examples = [
        Example(k, str(k), "ok", values={"input_ids": row, "labels": row}) for k, row in enumerate(ids.tolist())
    ]
    batch = CAUSAL.batch(examples, range(b), 0).to(device)
    return replace(batch, rows=batch.rows + first)


def curvature_inputs(replica: Replica, queries: int) -> dict[str, Statistics]:
    """Random queries' gradients and nodes of the damping, as the first sweep's fold takes them."""
    generator = torch.Generator().manual_seed(1)
    vectors, nodes = {}, {}
    for block in replica.blocks:
        vector = torch.randn(queries, block.size, generator=generator) * 1e-3
        vectors[block.name] = {"vector": vector.to(replica.device)}
        nodes[block.name] = {"nodes": torch.tensor([0.9e-6, 1.1e-6], dtype=torch.float64)[:NODES]}
    return {"queries": vectors, "nodes": nodes}


def first_sweep(
    replica: Replica, batches: Iterable[Any], rows: int, inputs: dict[str, Statistics]
) -> dict[str, Statistic]:
    """What a worker does with the batches of a chunk of `rows` rows in the first sweep, as `cluster.chunk` does it.

    Like a worker it waits for the device once a chunk, and not once a batch.
    """
    fold = Curvature(replica.blocks, rows, replica.device, **inputs)
    fine = [feed(replica, fold, batch) for batch in batches]
    found = fold.result()
    assert bool(torch.cat(fine).all()), "the random model's gradients are not finite"
    return found


def feed(replica: Replica, fold: Fold, batch: Any) -> Tensor:
    """One batch's gradients into a fold: which of its rows were finite."""

    def consume(block: str, gradients: Tensor, at: Tensor) -> None:
        fold.update(block, gradients, batch.rows[at])

    losses = replica.gradients(batch, consume)
    return fold.finite(batch.rows) & losses.isfinite()


def train(model: PeftModel, batches: Iterable[Batch], optimizer: torch.optim.Optimizer) -> None:
    """Plain LoRA training, a step for every batch: the model's own loss, backward, AdamW."""
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        names = ("input_ids", "attention_mask", "labels")
        model(**{name: batch.values[name] for name in names}, use_cache=False).loss.backward()
        optimizer.step()


def adamw(model: PeftModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)


def save(folder: Path, shape: Shape, targets: str | list[str], dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Base, adapter and a tokenizer of whole words (w2, w3, …), as files; the `model` part of a configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    base = shape.build(dtype, "cuda" if dtype == torch.bfloat16 and torch.cuda.is_available() else "cpu")
    words = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(_FIRST_WORD, shape.vocabulary)}}
    core = Tokenizer(models.WordLevel(words, unk_token=f"w{_FIRST_WORD}"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    with quiet():
        base.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        with_adapter(base, targets).save_pretrained(str(folder / "adapter"))
    return {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "task": "causal-lm"}


def write_text(path: Path, rows: Sequence[Sequence[int]]) -> None:
    """The rows as text, which the saved tokenizer turns into these ids and its end token."""
    lines = (json.dumps({"name": f"r{k}", "text": " ".join(f"w{i}" for i in ids)}) + "\n" for k, ids in enumerate(rows))
    path.write_text("".join(lines))
