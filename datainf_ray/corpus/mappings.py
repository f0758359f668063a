"""How columns that others' datasets have are mapped to roles; for messages."""

from __future__ import annotations

from collections.abc import Collection

#: What is asked, what stands beside it, and what is answered: names that are usual, the most telling ones first.
_ASKED = ("instruction", "question", "query", "prompt", "input", "source")
_BESIDE = ("input", "context")
_ANSWERED = ("output", "response", "answer", "completion", "chosen", "target", "reply")
_TEXTS = ("content", "sentence", "body", "document", "article", "review", "code")


def mapping_of(columns: Collection[str], roles: Collection[str]) -> str | None:
    """The `columns` that make the roles of these columns, as YAML; None where none is usual.

    Example: `mapping_of({"question", "answer"}, {"prompt", "completion"})` is
    `columns: {prompt: question, completion: answer}`.
    """
    asked, answered = _first(_ASKED, columns), _first(_ANSWERED, columns)
    if {"prompt", "completion"} <= set(roles) and asked and answered:
        beside = None if asked not in ("instruction", "question") else _first(_BESIDE, columns)
        if beside is None:
            return f"columns: {{prompt: {asked}, completion: {answered}}}"
        text = f'"{{{{ {asked} }}}}{{% if {beside} %}}\\n\\n{{{{ {beside} }}}}{{% endif %}}"'
        return f"columns: {{prompt: {text}, completion: {answered}}}"
    text_column = _first(_TEXTS, columns)
    return f"columns: {{text: {text_column}}}" if "text" in roles and text_column else None


def _first(names: Collection[str], columns: Collection[str]) -> str | None:
    return next((name for name in names if name in columns), None)
