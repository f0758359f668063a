"""Queries about one phrase: the targets of a row, restricted to the tokens of a span of its text.

A row's span is a text, and then it means every place where that text stands; or [start, end], characters start..end-1.
Both are of the text that is learnt: of a text all of it, of prompt and completion the completion, of messages the
content of the last message of the assistant, as the row has it. A token that has a character of the span is a target,
where it would be one without the span. A row whose span is null keeps all of its targets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datainf_ray.common.words import counted, escaped
from datainf_ray.corpus.offsets import Offsets, Span
from datainf_ray.corpus.slots import THINK_TAG, Placed
from datainf_ray.corpus.talks import Message
from datainf_ray.corpus.targets import IGNORED
from datainf_ray.corpus.tokens import OK, Encoded, Fields

ROLE = "span"
_PAIR = re.compile(r"\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]")
_SHOWN = 40  # characters of a span in what is said of it
_FARTHEST = 16  # characters behind a span that its last token may have, where no offsets tell

Asked = str | Span  #: a text, or (start, end) in characters


@dataclass(frozen=True)
class Within:
    """The tokens that a row's targets are restricted to."""

    tokens: tuple[Span, ...]
    rule: str  #: in words, for people
    why_none: str = ""  #: why there are none

    def labels(self, labels: Sequence[int]) -> list[int]:
        """The labels, -100 outside of the tokens."""
        kept = [IGNORED] * len(labels)
        for start, stop in self.tokens:
            kept[start:stop] = labels[start:stop]
        return kept

    def told(self, made: Encoded) -> Encoded:
        """An encoded row with these targets, which says what they are or why there are none."""
        made.rule = f"{made.rule}, {self.rule}" if made.rule else self.rule
        if made.status != OK:
            beyond = made.detail if made.detail.startswith("all of them") else ""
            made.detail = self.why_none or beyond or f"no target is {self.rule}"
        return made


def span_of(fields: Fields) -> Asked | None:
    """What a row asks for; None where it asks for nothing."""
    value = fields.get(ROLE)
    return value if value is None or isinstance(value, str) else (value[0], value[1])


def places(asked: Asked, text: str, called: str) -> tuple[list[Span], str]:
    """The characters of `text` that are asked for, one span for each place; and why there are none.

    Places do not overlap. "[0, 5]" that stands nowhere in the text means [0, 5], as CSV has to write it. `called` is
    what the text is, for messages. Raises ValueError where [start, end] reaches beyond the text.

    Example: `places("ab", "ab abc", "the text") == ([(0, 2), (3, 5)], "")`.
    """
    if not isinstance(asked, str):
        if asked[1] > len(text):
            raise ValueError(f"span is {list(asked)}, and {called} has {counted(len(text), 'character')}")
        return [asked], ""
    found = _occurrences(asked, text)
    pair = _PAIR.fullmatch(asked)
    if not found and pair is not None:
        return places((int(pair[1]), int(pair[2])), text, called)
    return found, "" if found else f"span {_quoted(asked)} does not occur in {called}"


def _occurrences(phrase: str, text: str) -> list[Span]:
    found, at = [], text.find(phrase)
    while at >= 0:
        found.append((at, at + len(phrase)))
        at = text.find(phrase, at + len(phrase))
    return found


def content_of(message: Message) -> str:
    """What a message says, as its row has it; the texts of its parts one behind the other."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def within_talk(talk: str, content: str, placed: Sequence[Placed], asked: Asked) -> tuple[list[Span], str]:
    """The characters of a rendered talk that are asked for of a message's content; and why there are none.

    `placed` says where the content's texts are in the talk. Raises ValueError as `places` does, and where [start, end]
    cannot be told because the template writes the content in another way.
    """
    wanted, why = places(asked, content, "what the assistant says last")
    found: list[Span] = []
    plain, at = THINK_TAG.sub(lambda tag: "\0" * len(tag[0]), content), 0
    for one in placed:
        begin = plain.find(one.slot.text, at)
        if begin < 0:
            continue
        at = begin + len(one.slot.text)
        if talk[one.start : one.stop] == one.slot.text:
            cut = [(max(start, begin), min(stop, at)) for start, stop in wanted]
            found += [(start - begin + one.start, stop - begin + one.start) for start, stop in cut if start < stop]
        elif isinstance(asked, str):
            found += [
                (one.start + start, one.start + stop) for start, stop in _occurrences(asked, talk[one.start : one.stop])
            ]
        else:
            raise ValueError("the chat template writes what the assistant says in another way: give span as a text")
    return found, why if not wanted or found else "the chat template leaves out what the span is of"


def named(asked: Asked, count: int) -> str:
    """What was asked for and how many places it has, in words."""
    if not isinstance(asked, str):
        return f"within characters {asked[0]} to {asked[1]}"
    return f"within {_quoted(asked)}" + (f", in {counted(count, 'place')}" if count > 1 else "")


def tokenize_of(tokenizer: Any, role: str = "text", **keywords: Any) -> Callable[[str], Any]:
    """What `within_text` asks of a tokenizer: the encoding of a text, or a text_target; `keywords` go with each."""
    fast = bool(getattr(tokenizer, "is_fast", False))  # knows which characters a token stands for
    return lambda text: tokenizer(**{role: text}, verbose=False, return_offsets_mapping=fast, **keywords)


def within_text(
    tokenize: Callable[[str], Any],
    text: str,
    begin: int,
    stop: int,
    asked: Asked,
    called: str,
    limit: int | None = None,
) -> Within:
    """The tokens of what is asked for of the characters begin..stop-1 of a text.

    `tokenize(text)` is the tokenizer's encoding of a text, cut at `limit` tokens where that is given, with its
    `offset_mapping` where it has one. Raises ValueError as `places` does.
    """
    found, why = places(asked, text[begin:stop], called)
    if not found:
        return Within((), named(asked, 0), why)
    whole = tokenize(text)
    offsets = whole.get("offset_mapping")
    spans = [(start + begin, end + begin) for start, end in found]
    if offsets is None:
        tokens = [_without_offsets(tokenize, whole["input_ids"], text, *span) for span in spans]
    else:
        known = Offsets(offsets)
        tokens = [known.tokens(*span) for span in spans]
    there = tuple((a, b) for a, b in tokens if a < b)
    if not there:
        beyond = limit is not None and len(whole["input_ids"]) >= limit
        why = f"all of them lie beyond max_length {limit}" if beyond else "the tokenizer has no token for the span"
    return Within(there, named(asked, len(found)), why)


def _without_offsets(tokenize: Callable[[str], Any], ids: Sequence[int], text: str, start: int, stop: int) -> Span:
    """From the first token that is not of the text before the span alone, to the first border of tokens behind it."""

    def own(end: int) -> tuple[int, int]:
        """Of the first `end` characters alone: how many tokens they have, and how many of these the text has, too."""
        found = tokenize(text[:end])["input_ids"]
        count = len(found) - behind
        return count, min(_shared(found, ids), count)

    added = tokenize("")["input_ids"]  # before a text and behind it
    behind = len(added) - _shared(added, ids)
    last = len(ids) - behind
    begin = own(start)[1]
    for end in range(stop, min(stop + _FARTHEST, len(text)) + 1):
        count, same = own(end)
        if same == count:
            return begin, min(same, last)
    return begin, min(max(own(stop)[1], begin) + 1, last)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _quoted(text: str) -> str:
    return f"“{escaped(text, _SHOWN)}”"
