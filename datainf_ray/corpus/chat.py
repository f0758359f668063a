"""Conversations as tokens: what the chat template gives, and which of it the assistant said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.preview import fold, fold_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


class ChatTemplate:
    """A tokenizer's chat template. Raises `RequestError` where it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        try:
            template = self._tokenizer.get_chat_template()
        except ValueError:
            name = tokenizer.name_or_path or "the model"
            raise RequestError(
                "model.base",
                None,
                f"the tokenizer of {name} has no chat template, which rows of messages need",
                "use columns prompt and completion, or text",
            ) from None
        self._fast = bool(getattr(tokenizer, "is_fast", False))  # knows which characters a token stands for
        self._marked = self._fast and bool(_GENERATION.search(template))

    def encode(self, messages: list[Any]) -> tuple[list[int], list[tuple[int, int]]]:
        """The conversation's tokens, exactly those of `apply_chat_template`, and the assistant's spans in them.

        The spans are the template's own `{% generation %}` blocks where it has any. Otherwise an assistant's turn
        is what the template adds to the conversation before it, rendered with the generation prompt: the reply and
        what closes it. Raises ValueError where a message is no message, or where the template renders the beginning
        of the conversation differently, so that the turn cannot be found.
        """
        messages = _checked(messages)
        options: dict[str, Any] = {"tokenize": True, "return_dict": True}
        if self._marked:
            made = self._tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
            return list(made["input_ids"]), _runs(made["assistant_masks"])
        if self._fast:
            options["tokenizer_kwargs"] = {"return_offsets_mapping": True}
        made = self._tokenizer.apply_chat_template(messages, **options)
        ids, offsets = list(made["input_ids"]), made.get("offset_mapping")
        whole = self._text(messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                edges = self._text(messages[:turn], reply=True), self._text(messages[: turn + 1])
                if not all(map(whole.startswith, edges)):
                    raise ValueError(f"the chat template renders the talk up to message {turn} differently on its own")
                start, stop = (self._position(edge, ids, offsets) for edge in edges)
                spans.append((start, stop))
        return ids, spans

    def _text(self, messages: list[dict[str, Any]], reply: bool = False) -> str:
        """The talk as the template writes it; with `reply`, up to where the assistant begins to speak."""
        talks = [messages]  # a batch of one: an empty talk by itself is refused
        return str(self._tokenizer.apply_chat_template(talks, tokenize=False, add_generation_prompt=reply)[0])

    def _position(self, beginning: str, ids: list[int], offsets: list[tuple[int, int]] | None) -> int:
        """The first token that reaches beyond `beginning`."""
        if offsets is not None:
            return next((i for i, (_, end) in enumerate(offsets) if end > len(beginning)), len(ids))
        own = self._tokenizer(beginning, add_special_tokens=False)["input_ids"]
        return next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), min(len(own), len(ids)))


def fold_messages(messages: Any) -> str:
    """The last thing the assistant said, after what came before it, on one short line; of anything at all."""
    listed = messages if isinstance(messages, list) else []
    turns = [(m.get("role"), _text(m.get("content"))) for m in listed if isinstance(m, dict)]
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    if last is None:
        return fold(" ".join(text for _, text in turns))
    return fold_pair(" ".join(text for _, text in turns[:last]), turns[last][1])


def _checked(messages: list[Any]) -> list[dict[str, Any]]:
    """The messages without the nulls that Parquet and Arrow put where a struct has no value."""
    if not messages:
        raise ValueError("messages is empty")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} is no object with a role and a content")
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(f"message {number} has no content")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _runs(mask: list[int]) -> list[tuple[int, int]]:
    edges = [i for i in range(len(mask) + 1) if (mask[i] if i < len(mask) else 0) != (mask[i - 1] if i else 0)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _text(content: Any) -> str:
    """A message's text; content may come in parts of several kinds."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
