"""Conversations as tokens: what the chat template gives, and which of it the assistant said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from datainf_ray.corpus.preview import fold, fold_pair
from datainf_ray.errors import RequestError

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
                f"model.base: the tokenizer of {name} has no chat template, which rows of messages need; "
                "use columns prompt and completion, or text"
            ) from None
        self._marked = bool(_GENERATION.search(template)) and bool(getattr(tokenizer, "is_fast", False))

    def encode(self, messages: list[Any]) -> tuple[list[int], list[tuple[int, int]]]:
        """The conversation's tokens, exactly those of `apply_chat_template`, and the assistant's spans in them.

        The spans are the template's own `{% generation %}` blocks where it has any. Otherwise an assistant's turn
        is what the template adds to the conversation before it, rendered with the generation prompt: the reply and
        what closes it. Raises ValueError where a message is no message, or where the template renders the beginning
        of the conversation differently, so that the turn cannot be found.
        """
        messages = _checked(messages)
        if self._marked:
            made = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            return list(made["input_ids"]), _runs(made["assistant_masks"])
        ids = list(self._apply(messages, tokenize=True, return_dict=True)["input_ids"])
        whole = self._apply(messages, tokenize=False)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._common(
                whole, ids, turn, self._apply(messages[:turn], tokenize=False, add_generation_prompt=True)
            )
            stop = len(ids)
            if turn + 1 < len(messages):
                stop = self._common(whole, ids, turn, self._apply(messages[: turn + 1], tokenize=False))
            spans.append((start, stop))
        return ids, spans

    def _apply(self, messages: list[Any], **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(messages, **options)

    def _common(self, whole: str, ids: list[int], turn: int, beginning: str) -> int:
        """How many of the conversation's tokens its `beginning` has. A token that reaches beyond it is not counted."""
        if not whole.startswith(beginning):
            raise ValueError(f"the chat template renders what comes before message {turn} differently on its own")
        own = self._tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"]
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
    return [{key: value for key, value in m.items() if value is not None or key == "content"} for m in messages]


def _runs(mask: list[int]) -> list[tuple[int, int]]:
    edges = [i for i in range(len(mask) + 1) if (mask[i] if i < len(mask) else 0) != (mask[i - 1] if i else 0)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _text(content: Any) -> str:
    """A message's text; content may come in parts of several kinds."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
