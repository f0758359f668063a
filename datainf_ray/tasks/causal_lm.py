"""A language model that predicts the next token.

How rows become tokens (all are cut from the right at `max_length`):

- text: what the tokenizer makes of the text with EOS spelt out at its end; every token is a target. An empty text has
  no tokens.
- prompt and completion: tokenized as one text, with EOS spelt out at its end, as TRL does. The completion begins where
  the tokens of the prompt alone end or are others; it and EOS are targets (see `corpus.texts`).
- messages: what the chat template gives, token for token; the assistant's turns are targets (see `corpus.chat`).
- prompt and completion as lists of messages: what the template gives for both; all behind the prompt are targets.
- input_ids: as they are, less the padding that attention_mask tells. The targets are those of labels, or else of
  completion_mask and assistant_masks; without any of them every token is one (see `corpus.given`).

`targets` may say otherwise (see `corpus.targets`), and a query's `span` restricts them (see `corpus.spans`). The first
token of a row is never a target: nothing predicts it. The loss is the cross-entropy of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datainf_ray.corpus.columns import SPAN, Combination
from datainf_ray.corpus.given import BESIDE, LENGTHS, token_types, unpadded
from datainf_ray.corpus.passages import Passage, pair
from datainf_ray.corpus.spans import span_of, tokenize_of, within_text
from datainf_ray.corpus.talk_rows import messages_encoder, pairs_encoder
from datainf_ray.corpus.talks import said_in, said_in_pair
from datainf_ray.corpus.targets import IGNORED, MASK_ROLES, check_targets, labels_of
from datainf_ray.corpus.texts import begin_of_completion, closed, tokenized
from datainf_ray.corpus.tokens import (
    Encode,
    Encoded,
    EncoderSpec,
    Fields,
    decoded,
    each,
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
    check_targets(spec.kind, spec.targets, spec.key, spec.roles)
    if spec.kind == "text":
        return _texts(spec)
    if spec.kind == "prompt-completion":
        return pairs_encoder(spec, _pairs(spec), _encoded)
    if spec.kind == "messages":
        return messages_encoder(spec, _encoded)
    return each(lambda fields: _given(spec, fields))


def _texts(spec: EncoderSpec) -> Encode:
    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        lines = tokenized(spec.tokenizer, [closed(spec.tokenizer, row["text"]) for row in rows])
        found = [ids if row["text"] else [] for row, ids in zip(rows, lines, strict=True)]
        return [_within(spec, row, "text", ids, ids, "every token") for row, ids in zip(rows, found, strict=True)]

    return encode


def _pairs(spec: EncoderSpec) -> Encode:
    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        prompts = tokenized(spec.tokenizer, [row["prompt"] for row in rows])
        texts = [row["prompt"] + closed(spec.tokenizer, row["completion"]) for row in rows]
        wholes = tokenized(spec.tokenizer, texts)
        return [one(row, prompt, whole) for row, prompt, whole in zip(rows, prompts, wholes, strict=True)]

    def one(row: Fields, prompt: list[int], whole: list[int]) -> Encoded:
        if spec.targets == "all":
            return _within(spec, row, "completion", whole, whole, "every token")
        begin = begin_of_completion(prompt, whole)
        labels = [IGNORED] * begin + whole[begin:]
        return _within(spec, row, "completion", whole, labels, "everything behind the prompt")

    return encode


def _within(spec: EncoderSpec, row: Fields, role: str, ids: Sequence[int], labels: Sequence[int], rule: str) -> Encoded:
    """A row of texts, its targets restricted to its span of what stands in the role."""
    asked = span_of(row)
    if asked is None:
        return _encoded(spec, ids, labels, rule)
    before = row["prompt"] if role == "completion" else ""
    text = before + closed(spec.tokenizer, row[role])
    tokenize = tokenize_of(spec.tokenizer)
    within = within_text(tokenize, text, len(before), len(before) + len(row[role]), asked, f"the {role}")
    return within.told(_encoded(spec, ids, within.labels(labels), rule))


def _given(spec: EncoderSpec, fields: Fields) -> Encoded:
    row = unpadded(fields, (*BESIDE, "labels", *MASK_ROLES))
    ids = given_ids(spec, row["input_ids"], "input_ids")
    if "labels" in row:
        row["labels"] = given_ids(spec, row["labels"], "labels")
    types = token_types(spec, row["token_type_ids"]) if "token_type_ids" in row else None
    labels, rule = labels_of(row, ids, spec.targets)
    return _encoded(spec, ids, labels, rule, types)


def _encoded(
    spec: EncoderSpec, ids: Sequence[int], labels: Sequence[int], rule: str = "", types: Sequence[int] | None = None
) -> Encoded:
    whole = len(ids)
    ids, kept = list(ids[: spec.max_length]), list(labels[: spec.max_length])
    if kept:
        kept[0] = IGNORED
    status, detail = untargeted(kept, labels[1:], spec.max_length)
    values = {"input_ids": ids, "labels": kept}
    if types is not None:
        values["token_type_ids"] = list(types[: spec.max_length])
    return Encoded(values, (len(ids),), status, detail, whole - len(ids), rule)


def says(spec: EncoderSpec, fields: Fields, values: Mapping[str, Any] | None) -> list[Passage]:
    texts = texts_of(fields)
    if spec.kind == "prompt-completion" and not {"prompt", "completion"} & set(texts):
        return said_in_pair(fields.get("prompt"), fields.get("completion"))
    if spec.kind == "prompt-completion":
        return pair(texts.get("prompt", ""), texts.get("completion", ""))
    if spec.kind == "messages":
        return said_in(fields.get("messages"))
    if spec.kind == "text":
        return [Passage("text", texts.get("text", ""))]
    return [Passage("input_ids", decoded(spec.tokenizer, values["input_ids"]) if values else "")]


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


def each_loss(model: nn.Module, values: Values) -> Tensor:
    from datainf_ray.model.loss import each_token

    found = logits(model, values)
    return each_token(found, values["labels"].to(found.device))


def shortcut(model: nn.Module, blocks: Mapping[str, nn.Parameter], device: torch.device) -> LanguageShortcut:
    from datainf_ray.model.shortcut import LanguageShortcut

    return LanguageShortcut(model, blocks, device, logits, spare_mask=True)


def cost(tokens: float, vocabulary: int, on_gpu: bool) -> float:
    from datainf_ray.model.loss import logits_bytes

    return logits_bytes(tokens, vocabulary, on_gpu)


_TALKS_TOO = {"prompt": "any", "completion": "any"}  # texts, or lists of messages
_SPAN = {"span": SPAN}

TASK = Task(
    name="causal-lm",
    kinds=(
        Combination("messages", ("messages",), ("tools", "system", "chat_template_kwargs", "span"), _SPAN),
        Combination(
            "prompt-completion", ("prompt", "completion"), ("tools", "chat_template_kwargs", "span"), _TALKS_TOO | _SPAN
        ),
        Combination("tokens", ("input_ids",), ("labels", *MASK_ROLES, *BESIDE, LENGTHS)),
        Combination("text", ("text",), ("span",), _SPAN),
    ),
    model_class=model_class,
    encoder=encoder,
    collate=collate,
    losses=losses,
    says=says,
    trial=trial,
    shortcut=shortcut,
    token_losses=each_loss,
    cost=cost,
)
