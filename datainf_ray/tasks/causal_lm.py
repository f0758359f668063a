"""A language model that predicts the next token.

How rows become tokens (all are cut from the right at `max_length`):

- text: the tokenizer's tokens with its own special tokens, then EOS if it has one; every token is a target.
- prompt and completion: tokenized separately, so that the prompt's tokens never depend on the completion; the prompt
  with the special tokens that begin a text, then the completion, then EOS. The completion and EOS are targets.
- messages: what the chat template gives, token for token; the assistant's turns are targets (see `corpus.chat`).
- prompt and completion as lists of messages: what the template gives for both; all behind the prompt are targets.
- input_ids and labels: as they are. Without labels every token is a target.

The first token of a row is never a target: nothing predicts it. The loss is the cross-entropy of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datainf_ray.corpus.columns import Combination
from datainf_ray.corpus.preview import fold_pair
from datainf_ray.corpus.talk_rows import messages_encoder, pairs_encoder
from datainf_ray.corpus.talks import fold_messages, fold_talks
from datainf_ray.corpus.tokens import (
    IGNORED,
    Encode,
    Encoded,
    EncoderSpec,
    Fields,
    begun,
    closes,
    decoded,
    each,
    ended,
    given_ids,
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
    if spec.kind == "text":
        return _texts(spec)
    if spec.kind == "prompt-completion":
        return pairs_encoder(spec, _pairs(spec), _encoded)
    if spec.kind == "messages":
        return messages_encoder(spec, _encoded)
    return each(lambda fields: _given(spec, fields))


def _texts(spec: EncoderSpec) -> Encode:
    tokenizer, closed = spec.tokenizer, closes(spec.tokenizer)

    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        lines = begun(tokenizer, [row["text"] for row in rows], closed)
        found = [ended(tokenizer, ids) if row["text"] else [] for row, ids in zip(rows, lines, strict=True)]
        return [_encoded(spec, ids, ids) for ids in found]

    return encode


def _pairs(spec: EncoderSpec) -> Encode:
    tokenizer, closed = spec.tokenizer, closes(spec.tokenizer)

    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        prompts = begun(tokenizer, [row["prompt"] for row in rows], closed)
        texts = [row["completion"] for row in rows]
        completions = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        pairs = [(p, ended(tokenizer, c)) for p, c in zip(prompts, completions, strict=True)]
        return [_encoded(spec, p + c, [IGNORED] * len(p) + c) for p, c in pairs]

    return encode


def _given(spec: EncoderSpec, fields: Fields) -> Encoded:
    ids = given_ids(spec, fields["input_ids"], "input_ids")
    labels = given_ids(spec, fields["labels"], "labels") if "labels" in fields else ids
    if len(labels) != len(ids):
        raise ValueError(f"{len(ids)} input_ids but {len(labels)} labels")
    return _encoded(spec, ids, labels)


def _encoded(spec: EncoderSpec, ids: Sequence[int], labels: Sequence[int]) -> Encoded:
    whole = len(ids)
    ids, kept = list(ids[: spec.max_length]), list(labels[: spec.max_length])
    if kept:
        kept[0] = IGNORED
    status, detail = untargeted(kept, labels[1:], spec.max_length)
    return Encoded({"input_ids": ids, "labels": kept}, (len(ids),), status, detail, whole - len(ids))


def preview(spec: EncoderSpec, fields: Fields, values: Mapping[str, Any] | None) -> str:
    texts = texts_of(fields)
    if spec.kind == "prompt-completion" and not {"prompt", "completion"} & set(texts):
        return fold_talks(fields.get("prompt"), fields.get("completion"))
    if spec.kind == "prompt-completion":
        return fold_pair(texts.get("prompt", ""), texts.get("completion", ""))
    if spec.kind == "messages":
        return fold_messages(fields.get("messages"))
    if spec.kind == "text":
        return texts.get("text", "")
    return decoded(spec.tokenizer, values["input_ids"]) if values else ""


def trial(length: int, vocabulary: int, generator: torch.Generator) -> Encoded:
    import torch

    ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
    return Encoded({"input_ids": ids, "labels": ids}, (length,))


def collate(values: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """The tokens, padded on the right, and `labels`: b×s int64, -100 where there is no target."""
    from datainf_ray.corpus.batches import pad, token_tensors

    return {**token_tensors(values, pad_id), "labels": pad([value["labels"] for value in values], IGNORED)}


def model_class() -> Any:
    import transformers

    return transformers.AutoModelForCausalLM


def logits(model: nn.Module, values: Values, masked: bool = True) -> Tensor:
    """b × s × V, those of a position for the token after it."""
    from datainf_ray.model.forward import token_arguments

    found: Tensor = model(use_cache=False, **token_arguments(model, values, masked)).logits
    return found


def losses(model: nn.Module, values: Values, reduction: Reduction) -> Tensor:
    from datainf_ray.model.loss import token_losses

    found = logits(model, values)
    return token_losses(found, values["labels"].to(found.device), reduction)


def shortcut(model: nn.Module, blocks: Mapping[str, nn.Parameter], device: torch.device) -> LanguageShortcut:
    from datainf_ray.model.shortcut import LanguageShortcut

    return LanguageShortcut(model, blocks, device, logits, spare_mask=True)


def cost(tokens: float, vocabulary: int, on_gpu: bool) -> float:
    from datainf_ray.model.loss import logits_bytes

    return logits_bytes(tokens, vocabulary, on_gpu)


_TALKS_TOO = {"prompt": "any", "completion": "any"}  # texts, or lists of messages

TASK = Task(
    name="causal-lm",
    kinds=(
        Combination("messages", ("messages",), ("tools", "system", "chat_template_kwargs")),
        Combination("prompt-completion", ("prompt", "completion"), ("tools", "chat_template_kwargs"), _TALKS_TOO),
        Combination("tokens", ("input_ids",), ("labels",)),
        Combination("text", ("text",)),
    ),
    model_class=model_class,
    encoder=encoder,
    collate=collate,
    losses=losses,
    preview=preview,
    trial=trial,
    shortcut=shortcut,
    cost=cost,
)
