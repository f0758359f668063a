"""How columns that others' datasets have are mapped to roles; for messages."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

#: What is asked, what stands beside it, and what is answered: names that are usual, the most telling ones first.
_ASKED = ("instruction", "question", "query", "prompt", "input", "source", "messages")
_BESIDE = ("input", "context")
_ANSWERED = ("output", "response", "answer", "completion", "chosen", "preferred_output", "target", "reply")
_TALKS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "convo", "turns", "chosen")
_BESIDE_TALKS = ("tools", "chat_template_kwargs")
_TEXTS = ("text", "content", "sentence", "body", "document", "article", "review", "code")


def mapping_of(columns: Collection[str], roles: Collection[str]) -> str | None:
    """The `columns` that make the roles of these columns, as YAML; None where none is usual.

    `columns` may have names of what lies within others, as data.prompt, behind them. Capitals and spaces around a name
    do not count.

    Example: `mapping_of(["question", "answer"], {"prompt", "completion"})` is
    `columns: {prompt: question, completion: answer}`.
    """
    known: dict[str, str] = {}
    for name in columns:
        if not any(other.startswith(f"{name}.") for other in columns):  # else it is no value, but has some
            known.setdefault(name.rpartition(".")[2].strip().lower(), name)
    # A request that names a column takes no other by itself.
    beside_talks = "".join(f", {name}: {name}" for name in _BESIDE_TALKS if name in columns and name in roles)
    asked, answered = _first(_ASKED, known), _first(_ANSWERED, known)
    if {"prompt", "completion"} <= set(roles) and asked and answered:
        beside = _first(_BESIDE, known) if asked in (known.get("instruction"), known.get("question")) else None
        if beside is None:
            return f"columns: {{prompt: {_written(asked)}, completion: {_written(answered)}{beside_talks}}}"
        if not (asked.isidentifier() and beside.isidentifier()):  # a Jinja text has no way to write it
            return None
        text = f'"{{{{ {asked} }}}}{{% if {beside} %}}\\n\\n{{{{ {beside} }}}}{{% endif %}}"'
        return f"columns: {{prompt: {text}, completion: {_written(answered)}}}"
    talk, text_column = _first(_TALKS, known), _first(_TEXTS, known)
    if "messages" in roles and talk:
        return f"columns: {{messages: {_written(talk)}{beside_talks}}}"
    return f"columns: {{text: {_written(text_column)}}}" if "text" in roles and text_column in columns else None


def _first(names: Collection[str], known: Mapping[str, str]) -> str | None:
    return next((known[name] for name in names if name in known), None)


def _written(name: str | None) -> str:
    """A column's name in YAML."""
    return name if name and name.replace(".", "_").isidentifier() else json.dumps(name, ensure_ascii=False)
