"""Text as a training reads it: one plain call of the tokenizer for the whole of it, EOS's own text at its end.

That is what TRL's `SFTTrainer` does, and what counts here is what the training saw. So a text that spells the BOS out
has it twice where the tokenizer puts one of its own before each text; and a tokenizer that closes each text with EOS by
itself gives a second one. A tokenizer without EOS adds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def closed(tokenizer: Any, text: str) -> str:
    """The text with the EOS spelt out at its end, once."""
    eos = tokenizer.eos_token
    return text if eos is None or text.endswith(eos) else text + eos


def tokenized(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, with the special tokens that the tokenizer adds. Nothing is cut."""
    ids: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    return ids


def begin_of_completion(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """The number of tokens that a prompt alone, and the prompt with its completion, begin with in common.

    A token that straddles the border, as " dog" does in "a " + "dog", is none of the prompt's alone: it counts as the
    completion's. So does all behind the first token that the completion changes, and the EOS that a tokenizer may put
    behind a prompt.

    Example: `begin_of_completion([1, 5, 6, 2], [1, 5, 6, 7, 2]) == 3`.
    """
    pairs = zip(prompt, whole, strict=False)
    return next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(prompt), len(whole)))
