"""Conversations as tokens: what the chat template gives, and which of it the assistant said.

The tokens are exactly those of `apply_chat_template`. A template's own `{% generation %}` marks say which of them are
the assistant's, where they hold what it says; else its turns are found by rendering the talk once more (see
`corpus.turns`). A message that says of itself that it was trained on, or not (weight, train, training, trainable), is
taken at its word, whoever speaks.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import escaped
from datainf_ray.corpus.offsets import Offsets, Span
from datainf_ray.corpus.slots import Masked, texts_of
from datainf_ray.corpus.spans import Asked, Within, content_of, named, within_talk
from datainf_ray.corpus.talks import Message, other_arguments, trained
from datainf_ray.corpus.today import KEY, asks_today, pinned
from datainf_ray.corpus.turns import Render, Turn, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")

MARKS = "the template's own marks"
TURNS = "the assistant's turns, as the template renders them"
LAST = "the assistant's last turn"
BEHIND = "everything behind the prompt"
ALL = "every token"
FLAGS = ", with the messages' own flags"


@dataclass(frozen=True)
class Said:
    """A talk's tokens, and which of them are targets."""

    ids: list[int]
    spans: list[Span]  #: of targets, start..stop-1
    rule: str  #: in words, what made them targets
    why_none: str = ""  #: why there are none, where that is the template's or the messages' doing


class ChatTemplate:
    """A tokenizer's chat template, or another for it. Raises `RequestError` where there is none."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None = None, keywords: Mapping[str, Any] | None = None
    ) -> None:
        """`keywords` are what the template is given for every talk; `date` among them is today's date for it."""
        self._tokenizer: Any = tokenizer
        self._template, self._keywords = template, dict(keywords or {})
        self._day = self._keywords.get(KEY)
        self._fast = bool(getattr(tokenizer, "is_fast", False))  # knows which characters a token stands for
        self._turns: dict[str, Turns] = {}
        self.text()

    def text(self, tools: list[dict[str, Any]] | None = None) -> str:
        """The template's text for talks with these tools. Raises `RequestError` where there is none."""
        try:
            text = self._tokenizer.get_chat_template(self._template, tools)
        except (AttributeError, ValueError):
            name = getattr(self._tokenizer, "name_or_path", "") or "the model"
            raise RequestError(
                "model.base",
                None,
                f"the tokenizer of {name} has no chat template, which rows of messages need",
                "give one as model.chat_template, or use columns prompt and completion, or text",
            ) from None
        return str(text) if self._day is None else pinned(str(text), str(self._day))

    def encode(
        self,
        messages: list[Message],
        targets: str = "auto",
        tools: list[dict[str, Any]] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> Said:
        """A talk's tokens, and those that `targets` makes targets: auto, all, assistant or last-assistant.

        `keywords` are what the template is given besides, for this talk. Raises ValueError where a message cannot be
        found in what the template gives, and what the template raises.
        """
        talk = self._talk(messages, tools, keywords)
        if targets == "all":
            return Said(talk.ids, [(0, len(talk.ids))], ALL)
        flags = [trained(number, message) for number, message in enumerate(messages)]
        assistants = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        marked, rule = self._marked(talk, assistants), TURNS
        usual = assistants[-1:] if targets == "last-assistant" else assistants
        wanted = {n for n, flag in enumerate(flags) if flag} | {n for n in usual if flags[n] is None}
        told = LAST if targets == "last-assistant" else None
        if marked is not None:
            rule = MARKS
            spans = marked
            if wanted != set(assistants):  # marks do not say whose they are
                own = self._found(talk, wanted | set(assistants))
                spans = _within(marked, [turn for turn in own if turn.message in wanted])
                spans += [(t.start, t.stop) for t in own if t.message in wanted and t.message not in assistants]
        else:
            spans = [(turn.start, turn.stop) for turn in self._found(talk, wanted)] if wanted else []
        rule = (told or rule) + (FLAGS if any(flag is not None for flag in flags) else "")
        why = _why_none(talk, assistants, wanted) if not spans else ""
        return Said(talk.ids, self._tokens(talk, sorted(spans)), rule, why)

    def encode_pair(
        self,
        prompt: list[Message],
        completion: list[Message],
        targets: str = "auto",
        tools: list[dict[str, Any]] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> Said:
        """The tokens of a prompt and its completion as one talk; the completion begins where the prompt's tokens end.

        The prompt's are those that it has by itself, with the generation prompt; where the talk has others the
        completion begins there, as TRL has it. `targets` is auto or completion, all, or assistant or last-assistant:
        the turns of the completion.
        """
        whole = [*prompt, *completion]
        talk = self._talk(whole, tools, keywords)
        if targets == "all":
            return Said(talk.ids, [(0, len(talk.ids))], ALL)
        completions = range(len(prompt), len(whole))
        flags = {number: trained(number, whole[number]) for number in completions}
        alone = self._ids(self._rendered(prompt, tools, keywords, reply=True))
        begin = _shared(alone, talk.ids)
        told = FLAGS if any(flag is not None for flag in flags.values()) else ""
        if targets in ("assistant", "last-assistant"):
            usual = [n for n in completions if whole[n]["role"] == "assistant"]
            usual = usual[-1:] if targets == "last-assistant" else usual
            wanted = {n for n in completions if flags[n]} | {n for n in usual if flags[n] is None}
            spans = self._tokens(talk, [(t.start, t.stop) for t in self._found(talk, wanted)] if wanted else [])
            spans = [(max(start, begin), stop) for start, stop in spans if stop > begin]
            rule = (LAST if targets == "last-assistant" else TURNS) + told
            return Said(talk.ids, spans, rule, "" if spans else _why_none(talk, usual, wanted, len(prompt)))
        left_out = {number for number, flag in flags.items() if flag is False}
        out = self._tokens(talk, [(t.start, t.stop) for t in self._found(talk, left_out)]) if left_out else []
        edges = [begin, *itertools.chain.from_iterable(out), len(talk.ids)]
        spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        return Said(talk.ids, spans, BEHIND + told, "" if spans else "the completion adds no tokens to the prompt")

    def within(
        self,
        messages: list[Message],
        asked: Asked,
        tools: list[dict[str, Any]] | None = None,
        keywords: Mapping[str, Any] | None = None,
        first: int = 0,
    ) -> Within:
        """The tokens of a span of what the assistant says last, in the messages from `first` on.

        Raises ValueError where the span or the message cannot be found in what the template gives.
        """
        talk = self._talk(messages, tools, keywords)
        assistants = [number for number in range(first, len(messages)) if messages[number]["role"] == "assistant"]
        if not assistants:
            return Within((), named(asked, 0), _why_none(talk, assistants, (), first))
        turns, render = self._finder(talk)
        placed = turns.content(talk.text, talk.messages, assistants[-1], render)
        spans, why = within_talk(talk.text, content_of(messages[assistants[-1]]), placed, asked)
        return Within(tuple(self._tokens(talk, spans)), named(asked, len(spans)), why)

    def _talk(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, keywords: Mapping[str, Any] | None
    ) -> _Talk:
        try:
            text = self._rendered(messages, tools, keywords)
        except Exception as error:
            messages, other = other_arguments(messages), messages
            if messages == other:
                raise
            try:
                text = self._rendered(messages, tools, keywords)
            except Exception:  # what the template says of the talk as it is tells more
                raise error from None
        made = self._tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=self._fast)
        return _Talk(messages, tools, keywords, text, list(made["input_ids"]), made.get("offset_mapping"))

    def _variables(self, template: str, keywords: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a template is given by name. The day is not: it is in the template."""
        return {k: v for k, v in {**self._keywords, **(keywords or {})}.items() if k != KEY or not asks_today(template)}

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        keywords: Mapping[str, Any] | None = None,
        reply: bool = False,
    ) -> str:
        """The talk as the template writes it; with `reply`, up to where the assistant begins to speak."""
        template = self.text(tools)
        made = self._tokenizer.apply_chat_template(
            [list(messages)],  # a batch of one: an empty talk by itself is refused
            tools=tools,
            chat_template=template,
            add_generation_prompt=reply,
            tokenize=False,
            **self._variables(template, keywords),
        )
        return str(made[0])

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _found(self, talk: _Talk, wanted: Collection[int]) -> list[Turn]:
        turns, render = self._finder(talk)
        return turns.find(talk.text, talk.messages, wanted, render)

    def _finder(self, talk: _Talk) -> tuple[Turns, Render]:
        """What finds messages in talks with such tools, and what renders other messages as this talk was."""
        template = self.text(talk.tools)
        if template not in self._turns:
            probe = functools.partial(self._rendered, tools=talk.tools)
            self._turns[template] = Turns(probe, self._tokenizer.eos_token)
        return self._turns[template], functools.partial(self._rendered, tools=talk.tools, keywords=talk.keywords)

    def _marked(self, talk: _Talk, assistants: Sequence[int]) -> list[Span] | None:
        """What the template marks as generated; None where it marks nothing, or not what the assistant says.

        Where marks stand within a macro or a block that is set, transformers counts their characters from the wrong
        place. Its masks of tokens lose turns where a mark begins with whitespace that a tokenizer's offsets leave out,
        so the characters are asked for here.
        """
        template = self.text(talk.tools)
        if not _GENERATION.search(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        made: Any = render_jinja_template(
            [talk.messages],
            tools=[*talk.tools] if talk.tools else None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**self._tokenizer.special_tokens_map, **self._variables(template, talk.keywords)},
        )
        texts, marks = made
        spans: list[Span] = [(start, stop) for start, stop in marks[0] if start < stop]
        if texts[0] != talk.text or any(stop > len(talk.text) for _, stop in spans):
            return None
        held = "\0".join(talk.text[start:stop] for start, stop in spans)
        at = 0
        for slot in Masked(talk.messages, assistants, talk.text).slots:
            found = held.find(slot.text, at) if slot.kind == "content" else at  # thoughts may be left out on purpose
            if found < 0 and slot.text in talk.text:
                return None
            at = max(at, found)
        return None if assistants and not spans else spans

    def _tokens(self, talk: _Talk, spans: Sequence[Span]) -> list[Span]:
        """Spans of characters as spans of tokens; a token that reaches into a span counts as the span's."""
        found = []
        for start, stop in spans:
            if talk.offsets is None:
                begin, end = (self._position(talk.text[:edge], talk.ids) for edge in (start, stop))
            else:
                begin, end = talk.offsets.tokens(start, stop)
            if begin < end:
                found.append((begin, end))
        return found

    def _position(self, beginning: str, ids: list[int]) -> int:
        """The first token that is not of `beginning` alone, where no offsets tell."""
        own = self._ids(beginning)
        return _shared(own, ids)


class _Talk:
    """A talk that was rendered, and its tokens."""

    def __init__(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        keywords: Mapping[str, Any] | None,
        text: str,
        ids: list[int],
        offsets: list[Span] | None,
    ) -> None:
        self.messages, self.tools, self.keywords = messages, tools, keywords
        self.text, self.ids = text, ids
        self.offsets = None if offsets is None else Offsets(offsets)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _within(spans: Sequence[Span], turns: Sequence[Turn]) -> list[Span]:
    """Those spans that have a character of a turn."""
    return [(start, stop) for start, stop in spans if any(t.start < stop and start < t.stop for t in turns)]


def _why_none(talk: _Talk, assistants: Sequence[int], wanted: Collection[int], first: int = 0) -> str:
    """Why none of the messages from `first` on gives a target."""
    if any(texts_of(talk.messages, number) for number in wanted):
        return "the chat template leaves out all that the assistant says"
    if wanted:
        return "the assistant says nothing"
    if assistants:
        return "the messages' own flags say that none was trained on"
    roles = dict.fromkeys(escaped(str(message["role"]), 40) for message in talk.messages[first:])
    return f"no message has the role assistant, only {', '.join([*roles][:5])}"
