"""Which of a rendered talk a message is: from behind the header that asks for it to the token that closes it.

What the assistant says begins behind the generation prompt, so its thoughts and the wrapping of its tool calls are its
own. An empty think block that the template puts there is not. It ends with the closing token (<|im_end|>, </s>, …),
where the template writes one; the line break behind that is not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from datainf_ray.common.errors import one_line
from datainf_ray.corpus.slots import Masked, Placed, place, texts_of
from datainf_ray.corpus.talks import Message

#: Renders messages; with `reply` up to where the assistant begins to speak. Raises what the template raises.
Render = Callable[..., str]

_TAG = re.compile(r"<[|｜]?/?[A-Za-z][^<>\s]{0,60}>|\[/?[A-Z_]{2,24}\]")
_ENDS = re.compile(r"(?<![a-z])(?:end|eo[tmsd]|return|stop)")
_EMPTY_THOUGHT = re.compile(
    r"\s*(?:<[^<>]*think[^<>]*>\s*<[^<>]*think[^<>]*>|<\|channel>thought\s*<channel\|>|\[THINK\]\s*\[/THINK\])\s*", re.I
)
_THOUGHT = re.compile(r"<[^<>]*think[^<>]*>|<\|channel>|\[THINK\]", re.I)
_CALL_TAG = re.compile(r"<[^<>/]*(?:tool|call|function|action)[^<>]*>|\[TOOL_CALLS\]", re.I)
_AROUND = (
    " \t\r\n\"'}])"  # what may stand between a text and the closing token: templates write lists of parts as JSON, too
)
_DEAREST = 50_000_000  # characters that may be rendered for one talk, one turn at a time


@dataclass(frozen=True)
class Turn:
    """The characters start..stop-1 of a rendered talk, which are a message's."""

    message: int
    start: int
    stop: int


class Turns:
    """Finds messages in what one chat template renders."""

    def __init__(self, render: Render, eos: str | None) -> None:
        """`render` must raise nothing but what the template raises; `eos` is the tokenizer's EOS."""
        self._header, self._closing = _probed(render)
        self._closing |= {eos} if eos else set()
        others = sorted((tag for tag in self._closing if not _TAG.fullmatch(tag)), key=len, reverse=True)
        self._tag = re.compile("|".join([*map(re.escape, others), _TAG.pattern]))

    def find(self, talk: str, messages: Sequence[Message], wanted: Collection[int], render: Render) -> list[Turn]:
        """Where the `wanted` messages are in a talk, from front to back, as far as the template renders them.

        `render` renders other messages as `talk` was. Raises ValueError where a message cannot be found.
        """
        for numbers in (range(len(messages)), sorted(wanted)):
            placed = self._placed(talk, messages, numbers, render)
            if placed is not None:
                return self._turns(messages, placed, wanted, numbers)
        if len(wanted) * len(talk) > _DEAREST:
            raise ValueError(
                "the chat template gives no sign of where messages begin and end in a talk as long as this"
            )
        return [turn for k in sorted(wanted) for turn in self._alone(talk, messages, k, render)]

    def content(self, talk: str, messages: Sequence[Message], number: int, render: Render) -> list[Placed]:
        """Where the texts of a message's content are in a talk, from front to back, as far as they are rendered.

        `render` is as for `find`. Raises ValueError where the message cannot be found.
        """
        message = {key: messages[number].get(key) for key in ("role", "content")}
        own = [(slot.kind, slot.text) for slot in Masked([message], [0], "").slots]
        for numbers in (range(len(messages)), [number]):
            placed = self._placed(talk, messages, numbers, render)
            if placed is None:
                continue
            found: list[Placed] = []
            for each in placed:
                rest = own[len(found) :]
                if each.slot.message == number and rest and (each.slot.kind, each.slot.text) in rest:
                    own = own[: len(found)] + rest[rest.index((each.slot.kind, each.slot.text)) :]
                    found.append(each)
            return found
        raise _not_found(number)

    def _placed(
        self, talk: str, messages: Sequence[Message], numbers: Collection[int], render: Render
    ) -> list[Placed] | None:
        masked = Masked(messages, numbers, talk)
        try:
            rendered = render(masked.messages)
        except Exception:  # whatever a template does not like about the marks; there are other ways
            return None
        return place(talk, masked, rendered)

    def _alone(self, talk: str, messages: Sequence[Message], number: int, render: Render) -> list[Turn]:
        """One message, from what stays as it is in the talk where its texts alone are others."""
        masked = Masked(messages, [number], talk)
        try:
            rendered = render(masked.messages)
        except Exception as error:
            raise _not_found(number, f": {one_line(error)}") from None
        placed = place(talk, masked, rendered)
        if placed is not None:
            return self._turns(messages, placed, [number], [number])
        pieces, numbers = masked.pieces(rendered)
        first, last = pieces[0], pieces[-1]
        stop = len(talk) - len(last)
        around = talk.startswith(first) and talk.endswith(last) and len(first) <= stop
        if not around or len(set(numbers)) < len(numbers):
            raise _not_found(number)
        ends = (Placed(masked.slots[k], len(first), stop, first, last) for k in (numbers[0], numbers[-1]))
        return [Turn(number, self._start(messages, next(ends), [number]), self._stop(next(ends)))]

    def _turns(
        self, messages: Sequence[Message], placed: Sequence[Placed], wanted: Collection[int], masked: Collection[int]
    ) -> list[Turn]:
        """The turns of the `wanted` messages: slots of one message with none of another between.

        Texts of messages that are not `masked` stand in what is before and behind the slots.
        """
        seen: set[int] = set()
        groups: list[list[Placed]] = []
        for each in placed:
            same = bool(groups) and groups[-1][0].slot.message == each.slot.message
            if id(each.slot) in seen and not (same and each.slot.kind == "content"):
                continue  # the name of a tool, which the template says again with the tool's answer
            seen.add(id(each.slot))
            if same:
                groups[-1].append(each)
            else:
                groups.append([each])
        turns: list[Turn] = []
        for group in groups:
            number = group[0].slot.message
            if number in wanted:
                start = self._start(messages, group[0], masked)
                turns.append(Turn(number, max(start, turns[-1].stop if turns else 0), self._stop(group[-1])))
        return turns

    def _start(self, messages: Sequence[Message], first: Placed, masked: Collection[int]) -> int:
        before, slot = first.before, first.slot
        message, last = messages[slot.message], slot.message - 1
        header = before.rfind(self._header) if self._header and message["role"] == "assistant" else -1
        begin = header + len(self._header)
        if last >= 0 and last not in masked and any(text in before[begin:] for text in texts_of(messages, last)):
            header = -1  # it is another message's
        if header < 0:
            if slot.kind == "call" and (tags := list(_CALL_TAG.finditer(before))):
                return first.start - (len(before) - tags[-1].start())
            own = next((own for own in (slot.before, slot.before.lstrip()) if own and before.endswith(own)), "")
            return first.start - len(own)
        content = message.get("content")
        own_block = isinstance(content, str) and _EMPTY_THOUGHT.match(content)
        inserted = None if own_block else _EMPTY_THOUGHT.match(before, begin)
        return first.start - len(before) + (begin if inserted is None else inserted.end())

    def _stop(self, last: Placed) -> int:
        """Behind the closing tokens that follow, with what stands between: the end of a tool call."""
        behind, end, at = last.behind, 0, 0
        while (tag := self._tag.search(behind, at)) is not None:
            between = behind[at : tag.start()]
            if not self._closes(tag[0]) or (last.slot.kind != "call" and between.strip(_AROUND)):
                break
            end = at = tag.end()
        if end == 0 and last.slot.kind == "call":
            end = len(behind.split("\n", 1)[0])
        if end == 0 and last.slot.behind and behind.startswith(last.slot.behind):
            end = len(last.slot.behind)
        return last.stop + end

    def _closes(self, tag: str) -> bool:
        """Whether a token ends something rather than beginning it, by the template's own example and by its name."""
        name = tag.strip("<>[]|｜").lower()
        if tag in self._closing or tag.startswith(("</", "[/")):
            return True
        return bool(_ENDS.search(name)) or name == "call" or bool(re.fullmatch(r"<[^|｜].*\|>", tag))


def _not_found(number: int, why: str = "") -> ValueError:
    return ValueError(f"message {number} cannot be found in what the chat template gives{why}")


def _probed(render: Render) -> tuple[str, set[str]]:
    """The header that asks for the assistant's turn, and the tokens that close one; empty where there are none."""
    asked, said = {"role": "user", "content": "\ue000"}, {"role": "assistant", "content": "\ue001"}

    def rendered(*messages: Message, reply: bool = False) -> str:
        try:
            return render([*messages], reply=reply)
        except Exception:  # a template may want more of a talk than this, and raise whatever it likes
            return ""

    bare, open_ = rendered(asked), rendered(asked, reply=True)
    header = open_[_common(bare, open_) :] if bare else ""
    thought = _THOUGHT.search(header)
    header = header[: thought.start()] if thought else header
    tail = rendered(asked, said).rpartition("\ue001")[2]
    return header if header.strip() else "", set(_TAG.findall(tail))


def _common(one: str, other: str) -> int:
    """The number of characters that two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
