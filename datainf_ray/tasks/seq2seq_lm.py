"""An encoder-decoder that gives a text for a text, as T5 and BART do.

How rows become tokens: the prompt as the tokenizer encodes a source, the completion as it encodes a target, each with
its special tokens and cut by the tokenizer at `max_length`; a target ends with EOS if the tokenizer has one, unless it
was cut. Or input_ids and labels, as they are and of any two lengths, each cut at `max_length`; input_ids go without the
padding that attention_mask tells (see `corpus.given`), and a label of -100 is no target. A query's `span` of its
completion restricts the targets (see `corpus.spans`).

The decoder reads the labels shifted by one, by the model's own rule, so its logits at a position predict the label at
that position. The loss is the cross-entropy of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig
from datainf_ray.corpus.columns import SPAN, Combination
from datainf_ray.corpus.given import unpadded
from datainf_ray.corpus.passages import Passage, pair
from datainf_ray.corpus.spans import span_of, tokenize_of, within_text
from datainf_ray.corpus.targets import IGNORED, check_targets
from datainf_ray.corpus.tokens import (
    Encode,
    Encoded,
    EncoderSpec,
    Fields,
    cut_off,
    decoded,
    each,
    ended,
    given_ids,
    require_known,
    texts_of,
    untargeted,
)
from datainf_ray.tasks.task import Task

if TYPE_CHECKING:  # what loads torch is imported where it is needed: a task is looked at before
    import torch
    from torch import Tensor, nn

    from datainf_ray.model.objective import Reduction, Values
    from datainf_ray.model.shortcut import LanguageShortcut


def encoder(spec: EncoderSpec) -> Encode:
    check_targets(spec.kind, spec.targets, spec.key, takes={"prompt-completion": ("auto", "completion")})
    if spec.kind == "tokens":
        return each(lambda fields: _given(spec, fields))
    cut: dict[str, Any] = {"truncation": spec.max_length is not None, "max_length": spec.max_length}
    tokenize = tokenize_of(spec.tokenizer, "text_target", **cut)

    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        sources = spec.tokenizer([row["prompt"] for row in rows], **cut)["input_ids"]
        targets = spec.tokenizer(text_target=[row["completion"] for row in rows], **cut)["input_ids"]
        return [one(row, source, target) for row, source, target in zip(rows, sources, targets, strict=True)]

    def one(row: Fields, source: list[int], target: list[int]) -> Encoded:
        require_known(spec, target, "labels")
        beyond = cut_off(spec.tokenizer, source, spec.max_length, text=row["prompt"])
        beyond += cut_off(spec.tokenizer, target, spec.max_length, text_target=row["completion"])
        labels, asked, text = ended(spec.tokenizer, target), span_of(row), row["completion"]
        if asked is None:
            return _encoded(spec, source, labels, "the completion", beyond)
        within = within_text(tokenize, text, 0, len(text), asked, "the completion", spec.max_length)
        return within.told(_encoded(spec, source, within.labels(labels), "the completion", beyond))

    return encode


def _given(spec: EncoderSpec, fields: Fields) -> Encoded:
    row = unpadded(fields, ("attention_mask",))
    ids, labels = (given_ids(spec, row[role], role) for role in ("input_ids", "labels"))
    return _encoded(spec, ids, labels, "labels")


def _encoded(spec: EncoderSpec, source: Sequence[int], labels: Sequence[int], rule: str, beyond: int = 0) -> Encoded:
    """`beyond` is the number of tokens that the tokenizer has cut off already."""
    ids, kept = list(source[: spec.max_length]), list(labels[: spec.max_length])
    if not ids:
        raise ValueError("the source has no tokens")
    status, detail = untargeted(kept, labels, spec.max_length)
    beyond += len(source) - len(ids) + len(labels) - len(kept)
    return Encoded({"input_ids": ids, "labels": kept}, (len(ids), len(kept)), status, detail, beyond, rule)


def says(spec: EncoderSpec, fields: Fields, values: Mapping[str, Any] | None) -> list[Passage]:
    if spec.kind == "prompt-completion":
        texts = texts_of(fields)
        return pair(texts.get("prompt", ""), texts.get("completion", ""))
    if values is None:
        return []
    targets = [label for label in values["labels"] if label != IGNORED]
    return [
        Passage("input_ids", decoded(spec.tokenizer, values["input_ids"])),
        Passage("labels", decoded(spec.tokenizer, targets), answer=True),
    ]


def trial(length: int, vocabulary: int, generator: torch.Generator) -> Encoded:
    """Half of the tokens are the source's and half the target's."""
    import torch

    half = max(length // 2, 1)
    ids = torch.randint(vocabulary, (half,), generator=generator).tolist()
    return Encoded({"input_ids": ids, "labels": ids}, (half, half))


def collate(values: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """The source's tokens, b×s, and `labels` (-100 where there is no target) and `label_mask` (0 where padded), b×t."""
    from datainf_ray.corpus.batches import pad, token_tensors

    tensors = token_tensors(values, pad_id)
    labels = [value["labels"] for value in values]
    return {**tensors, "labels": pad(labels, IGNORED), "label_mask": pad([[1] * len(line) for line in labels], 0)}


def model_class() -> Any:
    import transformers

    return transformers.AutoModelForSeq2SeqLM


def facts(model: ModelConfig, config: Any) -> dict[str, Any]:
    if not getattr(config, "is_encoder_decoder", False):
        raise RequestError(
            "model.base", model.base, f"a {config.model_type} is no encoder-decoder", "use task causal-lm"
        )
    return {}


def logits(model: nn.Module, values: Values, masked: bool = True) -> Tensor:
    """b × t × V, those of a position for the label there. `decoder_input_ids` are made of the labels if not given."""
    from datainf_ray.model.forward import base_of, is_bare, taken, token_arguments

    given = token_arguments(model, values, masked)
    given["decoder_input_ids"] = (
        values["decoder_input_ids"] if "decoder_input_ids" in values else _shifted(base_of(model), values["labels"])
    )
    if masked and not is_bare() and "decoder_attention_mask" in taken(model):
        given["decoder_attention_mask"] = values["label_mask"]
    found: Tensor = model(use_cache=False, **given).logits
    return found


def _shifted(base: Any, labels: Tensor) -> Tensor:
    """What the decoder reads: the labels, one position later, as the model itself makes it."""
    shift = getattr(base, "prepare_decoder_input_ids_from_labels", None) or getattr(base, "_shift_right", None)
    if shift is None:
        raise RequestError(
            "model.base", None, f"a {type(base).__name__} does not say how it shifts labels for its decoder"
        )
    shifted: Tensor = shift(labels)
    return shifted


def losses(model: nn.Module, values: Values, reduction: Reduction) -> Tensor:
    from datainf_ray.model.loss import token_losses

    found = logits(model, values)
    return token_losses(found, values["labels"].to(found.device), reduction, shift=0)


def each_loss(model: nn.Module, values: Values) -> Tensor:
    from datainf_ray.model.loss import each_token

    found = logits(model, values)
    return each_token(found, values["labels"].to(found.device), shift=0)


def shortcut(model: nn.Module, blocks: Mapping[str, nn.Parameter], device: torch.device) -> LanguageShortcut:
    """No logits of whole batches; an encoder looks ahead, so the mask stays."""
    from datainf_ray.model.shortcut import LanguageShortcut

    def tokens(ids: Tensor) -> Values:
        return {"input_ids": ids, "decoder_input_ids": ids}

    return LanguageShortcut(model, blocks, device, logits, tokens, shift=0)


def cost(tokens: float, vocabulary: int, on_gpu: bool) -> float:
    from datainf_ray.model.loss import logits_bytes

    return logits_bytes(tokens, vocabulary, on_gpu)


TASK = Task(
    name="seq2seq-lm",
    kinds=(
        Combination("prompt-completion", ("prompt", "completion"), ("span",), {"span": SPAN}),
        Combination("tokens", ("input_ids", "labels"), ("attention_mask",)),
    ),
    model_class=model_class,
    encoder=encoder,
    collate=collate,
    losses=losses,
    says=says,
    trial=trial,
    facts=facts,
    shortcut=shortcut,
    token_losses=each_loss,
    cost=cost,
)
