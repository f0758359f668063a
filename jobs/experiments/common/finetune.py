"""A plain LoRA fine-tune, seeded: AdamW over shuffled rows, an adapter kept after some of the epochs.

Rows become tokens, and tokens a loss, as `datainf run` has them, so that what is attributed is what was trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datainf_ray.config import load_config
from datainf_ray.corpus.tokens import OK, Example
from datainf_ray.model.blocks import ADAPTER_NAME
from datainf_ray.model.quiet import quiet
from datainf_ray.request.encoding import encoder_for
from datainf_ray.request.job import Job, prepare


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned; `schedule` is that of the learning rate."""

    rank: int = 4
    alpha: int = 16
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0
    learning_rate: float = 1e-3
    epochs: int = 5
    batch: int = 32
    weight_decay: float = 0.0
    schedule: str = "linear"  #: linear: from the full rate to 0; constant


def fine_tune(request: Mapping[str, Any], recipe: Recipe, seed: int, folder: Path, at: Sequence[int]) -> list[Path]:
    """Train an adapter for `request`, a configuration without one; the folders of those kept after the epochs `at`.

    0 is the adapter before any training. What is there already from an earlier attempt is not trained again. Adapters
    are what PEFT saves.
    """
    folders = [folder / f"epoch-{epoch:02d}" for epoch in at]
    if all((one / "adapter_model.safetensors").is_file() for one in folders):
        return folders
    base = {**request["model"], "adapter": None, "blocks": ["*"]}
    job = prepare(load_config({**request, "model": base}), writable=False)
    examples = [e for e in examples_of(job, "train") if e.status == OK]
    for epoch, model in _epochs(job, examples, recipe, seed):
        if epoch in at:
            with quiet():
                model.save_pretrained(folders[list(at).index(epoch)])
    return folders


def examples_of(job: Job, name: str) -> list[Example]:
    """All rows of one of a request's corpora, as the model sees them."""
    from datainf_ray.corpus.rows import RowReader
    from datainf_ray.model.inspect import load_tokenizer

    corpus = job.corpora[name]
    tokenizer = load_tokenizer(job.config.model, job.config.storage_options, job.task)
    encoder = encoder_for(job.config, name, corpus, job.facts, tokenizer)
    reader = RowReader(corpus)
    return [example for chunk in corpus.chunks(corpus.rows) for example in encoder.encode(reader.read(chunk))]


def _epochs(job: Job, examples: Sequence[Example], recipe: Recipe, seed: int) -> Iterator[tuple[int, Any]]:
    """The model before the first epoch, and after each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = _with_adapter(job, recipe).to(device)
    pad = getattr(model.get_base_model().config, "pad_token_id", None) or 0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(examples) // recipe.batch)
    order, step = random.Random(seed), 0
    yield 0, model
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        numbers = list(range(len(examples)))
        order.shuffle(numbers)
        for start in range(0, len(numbers), recipe.batch):
            if recipe.schedule == "linear":
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * (1 - step / steps)
            batch = job.task.batch(examples, numbers[start : start + recipe.batch], pad).to(device)
            loss = job.task.losses(model, batch.values, "mean").mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            step += 1
        model.eval()
        yield epoch, model


def _with_adapter(job: Job, recipe: Recipe) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    kinds = {
        "sequence-classification": TaskType.SEQ_CLS,
        "causal-lm": TaskType.CAUSAL_LM,
        "seq2seq-lm": TaskType.SEQ_2_SEQ_LM,
    }
    lora = LoraConfig(
        task_type=kinds[job.config.model.task],
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets),
    )
    with quiet():
        base = job.task.model_class().from_pretrained(job.config.model.base, dtype=torch.float32)
        job.task.complete(job.config.model, base, lambda: None)
        return get_peft_model(base, lora, adapter_name=ADAPTER_NAME)
