"""Where a chat template puts what the messages say: the talk rendered once more, with marks in place of their texts.

The template is a black box. Rendered with a mark that occurs nowhere else in place of every text (a *slot*), it gives
the pieces that it writes itself, before, between and behind the slots; and those are found again in the talk as it is.
That takes one more rendering however many messages there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from datainf_ray.corpus.talks import Message

#: What stands around thoughts in a content; templates look for it, so it stays where it is.
THINK_TAG = re.compile(r"</?(?:think|thinking|seed:think)>|\[/?THINK\]")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # as transformers calls them
#: Characters that hardly a talk has, all of them printable: JSON and Python would write others as numbers.
_MARKS = "".join(map(chr, range(0x13000, 0x13430)))


@dataclass(frozen=True)
class Slot:
    """A text of a message, less the whitespace around it."""

    message: int
    text: str
    kind: str  #: content, think or call
    before: str = ""  #: what the message has before it, where that is whitespace, and tags of thoughts
    behind: str = ""


@dataclass(frozen=True)
class Placed:
    """Where a slot is in the talk as it is; and what the template writes around it, as far as the next slots."""

    slot: Slot
    start: int
    stop: int
    before: str
    behind: str


class Masked:
    """Messages with marks in place of the texts of some of them."""

    def __init__(self, messages: Sequence[Message], numbers: Collection[int], talk: str) -> None:
        """`talk` is the talk as it is rendered."""
        self.slots: list[Slot] = []
        there = set(talk)
        self._mark = next((char for char in _MARKS if char not in there), "")
        if not self._mark:
            raise ValueError("the talk has every character by which its messages could be marked")
        self.messages = [self._message(k, m) if k in numbers else m for k, m in enumerate(messages)]

    def pieces(self, masked: str) -> tuple[list[str], list[int]]:
        """A rendering of the masked messages: what stands around its slots, one more than these, and their numbers."""
        found = re.split(f"{self._mark}(\\d+){self._mark}", masked)
        return found[::2], [int(number) for number in found[1::2]]

    def _message(self, number: int, message: Message) -> Message:
        masked = dict(message)
        for key in _REASONING:
            if isinstance(message.get(key), str):
                masked[key] = self._text(number, message[key], "think")
        content = message.get("content")
        if isinstance(content, str):
            masked["content"] = self._content(number, content)
        elif isinstance(content, list):
            masked["content"] = [self._part(number, part) for part in content]
        if isinstance(message.get("tool_calls"), list):
            masked["tool_calls"] = [self._call(number, call) for call in message["tool_calls"]]
        return masked

    def _content(self, number: int, content: str) -> str:
        tags = list(THINK_TAG.finditer(content))
        closing = max((tag.start() for tag in tags if "/" in tag[0]), default=-1)
        pieces, at, opening = [], 0, True
        for tag in [*tags, None]:
            stop = len(content) if tag is None else tag.start()
            kind = "think" if at <= closing else "content"
            pieces.append(self._text(number, content[at:stop], kind, content[:at] if opening else ""))
            pieces.append("" if tag is None else tag[0])
            opening = opening and not content[at:stop].strip()  # nothing but tags and whitespace so far
            at = stop if tag is None else tag.end()
        return "".join(pieces)

    def _part(self, number: int, part: Any) -> Any:
        if isinstance(part, str):
            return self._text(number, part, "content")
        kinds = {"text": "content", "thinking": "think", "reasoning": "think"}
        texts = {
            key: self._text(number, part[key], kind) for key, kind in kinds.items() if isinstance(part.get(key), str)
        }
        return {**part, **texts}

    def _call(self, number: int, call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": self._call(number, call["function"])}
        named = {key: self._leaves(number, call[key]) for key in ("name", "arguments") if key in call}
        return {**call, **named}

    def _leaves(self, number: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(number, value, "call")
        if isinstance(value, dict):
            return {key: self._leaves(number, each) for key, each in value.items()}
        return [self._leaves(number, each) for each in value] if isinstance(value, list) else value

    def _text(self, number: int, text: str, kind: str, opening: str = "") -> str:
        """The text with a mark in its place; `opening` is what the message has before it, where that is tags alone."""
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        before, behind = text[:at], text[at + len(core) :]
        self.slots.append(Slot(number, core, kind, opening + before, behind))
        return f"{before}{self._mark}{len(self.slots) - 1}{self._mark}{behind}"


def texts_of(messages: Sequence[Message], number: int) -> list[str]:
    """The texts of one message."""
    return [slot.text for slot in Masked(messages, [number], "").slots]


def place(talk: str, masked: Masked, rendered: str) -> list[Placed] | None:
    """The slots in the talk, from front to back, as far as the template renders them; None where they cannot be found.

    `rendered` is the rendering of the masked messages.
    """
    pieces, numbers = masked.pieces(rendered)
    if not talk.startswith(pieces[0]):
        return None
    placed, at = [], len(pieces[0])
    for k, number in enumerate(numbers):
        slot, behind, last = masked.slots[number], pieces[k + 1], k == len(numbers) - 1
        stop = _stop(talk, at, slot.text, behind, last)
        if stop is None:
            return None
        placed.append(Placed(slot, at, stop, pieces[k], behind))
        at = stop + len(behind)
    return placed if at == len(talk) else None


def _stop(talk: str, at: int, text: str, behind: str, last: bool) -> int | None:
    """Where the slot that begins at `at`, with this text and with `behind` behind it, ends."""
    for form in _forms(text):
        stop = at + len(form)
        whole = not last or stop + len(behind) == len(talk)
        if whole and talk.startswith(form, at) and talk.startswith(behind, stop):
            return stop
    if last:
        stop = len(talk) - len(behind)
        return stop if stop >= at and talk.endswith(behind) else None
    if not behind or behind in text:  # where the text ends cannot be told
        return None
    found = talk.find(behind, at)
    return None if found < 0 else found


def _forms(text: str) -> list[str]:
    """How templates write a text: as it is, as JSON, as Python."""
    if text.isprintable() and not set(text) & set("\"'\\"):
        return [text] if text.isascii() else [text, json.dumps(text)[1:-1]]
    return [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1]]
