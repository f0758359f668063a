"""The variables that a chat template is given by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

#: What `apply_chat_template` has a meaning of its own for, so that no template sees it.
RESERVED = (
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "sanitize_control_tokens", "conversations", "self",
)  # fmt: skip


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, which must be plain values under names of their own. Raises ValueError."""
    for name, value in given.items():
        if name in RESERVED:
            raise ValueError(f"{name} is no variable of a template")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError(f"{name} is no plain value, as JSON has them") from None
    return dict(given)


Keywords = Annotated[dict[str, Any], AfterValidator(checked)]
