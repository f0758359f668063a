"""Rows that are talks, as tokens with targets: messages, or a prompt and a completion of messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from datainf_ray.corpus.chat import ChatTemplate, Said
from datainf_ray.corpus.rows import called
from datainf_ray.corpus.spans import Within, span_of
from datainf_ray.corpus.talks import is_talk, keywords_of, messages_of, tools_of
from datainf_ray.corpus.targets import IGNORED
from datainf_ray.corpus.tokens import OK, Encode, Encoded, EncoderSpec, Fields, each

#: What makes an `Encoded` of a row's token ids and labels.
Finish = Callable[[EncoderSpec, Sequence[int], Sequence[int]], Encoded]


def messages_encoder(spec: EncoderSpec, finish: Finish) -> Encode:
    """What encodes rows of messages. Raises `RequestError` where there is no chat template."""
    template = _template(spec)

    def encode(fields: Fields) -> Encoded:
        messages = messages_of(fields["messages"], system=fields.get("system"))
        said = template.encode(messages, spec.targets, *_beside(fields))
        asked = span_of(fields)
        within = None if asked is None else template.within(messages, asked, *_beside(fields))
        return _encoded(spec, finish, said, within)

    return each(encode)


def pairs_encoder(spec: EncoderSpec, plain: Encode, finish: Finish) -> Encode:
    """What encodes rows of prompt and completion: two texts, which `plain` encodes, or two lists of messages."""
    template = functools.lru_cache(maxsize=1)(lambda: _template(spec))  # texts need none

    def talk(fields: Fields) -> Encoded:
        prompt, completion = fields["prompt"], fields["completion"]
        if not (is_talk(prompt) and is_talk(completion)):
            given = f"prompt is {called(prompt)} and completion is {called(completion)}"
            raise ValueError(f"{given}: two texts are needed, or two lists of messages")
        before, after, asked = messages_of(prompt, "prompt"), messages_of(completion, "completion"), span_of(fields)
        said = template().encode_pair(before, after, spec.targets, *_beside(fields))
        within = None
        if asked is not None:
            within = template().within([*before, *after], asked, *_beside(fields), first=len(before))
        return _encoded(spec, finish, said, within)

    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        texts = [row for row in rows if _are_texts(row)]
        if texts and spec.targets in ("assistant", "last-assistant"):
            of_texts: list[Encoded | Exception] = [_no_turns(spec.targets) for _ in texts]
        else:
            of_texts = list(plain(texts)) if texts else []
        of_talks = each(talk)([row for row in rows if not _are_texts(row)])
        first, second = iter(of_texts), iter(of_talks)
        return [next(first if _are_texts(row) else second) for row in rows]

    return encode


def _are_texts(row: Fields) -> bool:
    return isinstance(row["prompt"], str) and isinstance(row["completion"], str)


def _no_turns(targets: str) -> ValueError:
    return ValueError(f"targets is {targets}, and a prompt and completion of text have no turns: use completion or all")


def _template(spec: EncoderSpec) -> ChatTemplate:
    return ChatTemplate(spec.tokenizer, spec.chat_template, spec.chat_keywords)


def _beside(fields: Fields) -> tuple[list[dict[str, Any]] | None, dict[str, Any]]:
    """The tools of a row, and what its template is given besides."""
    return tools_of(fields.get("tools")), keywords_of(fields.get("chat_template_kwargs"))


def _encoded(spec: EncoderSpec, finish: Finish, said: Said, within: Within | None) -> Encoded:
    labels = [IGNORED] * len(said.ids)
    for start, stop in said.spans:
        labels[start:stop] = said.ids[start:stop]
    made = finish(spec, said.ids, labels if within is None else within.labels(labels))
    made.rule = said.rule
    if within is not None:
        made = within.told(made)
    if made.status != OK and said.why_none:
        made.detail = said.why_none
    return made
