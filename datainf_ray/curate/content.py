"""What rows of a corpus say, whole, by roles, as a person reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from datainf_ray.corpus.chunks import Chunk, Corpus, Segment
from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.rows import Row, RowReader
from datainf_ray.corpus.talks import is_talk, messages_of
from datainf_ray.corpus.thumbnails import told


def some_rows(corpus: Corpus, rows: Sequence[int] | np.ndarray) -> Iterator[Row]:
    """These rows of a corpus, which are in order."""
    starts = np.concatenate([[0], np.cumsum([file.rows for file in corpus.files])])
    files = np.searchsorted(starts, rows, side="right") - 1
    with closing(RowReader(corpus)) as reader:
        for row, file in zip(np.asarray(rows).tolist(), files.tolist(), strict=True):
            at = row - int(starts[file])
            yield reader.read(Chunk(0, row, (Segment(file, at, at + 1),)))[0]


def file_of(corpus: Corpus, row: int) -> SourceFile:
    """The file that a row is in."""
    ends = np.cumsum([file.rows for file in corpus.files])
    return corpus.files[int(np.searchsorted(ends, row, side="right"))]


def parts_of(row: Row) -> list[tuple[str, str]]:
    """The row's roles, or those who speak in it, each with its text: [("prompt", "Which?"), ("completion", "This.")].

    What is no text is JSON; of a picture there are its file's name and size. What of the row cannot be read is left
    out; `row.problem` says why.
    """
    found: list[tuple[str, str]] = []
    for role, value in row.fields.items():
        if value is None:
            continue
        if isinstance(value, list) and value and is_talk(value):
            found += _said(role, value)
        else:
            found.append((role, _text(value)))
    return found


def text_of(row: Row) -> str:
    """All of it as one text, a line with the role before each part."""
    return "\n".join(f"{role}:\n{text}" for role, text in parts_of(row))


def _said(role: str, value: list[Any]) -> Iterator[tuple[str, str]]:
    """Who speaks in a talk, and what they say; the role before it where it is none of messages."""
    try:
        messages = messages_of(value, role)
    except ValueError:
        yield role, _text(value)
        return
    for message in messages:
        more = {key: one for key, one in message.items() if key not in ("role", "content")}
        parts = [_text(message["content"])] if message.get("content") is not None else []
        who = message["role"] if role == "messages" else f"{role}, {message['role']}"
        yield who, "\n".join([*parts, *([_text(more)] if more else [])])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):  # a picture's, which nobody reads
        return f"({told(getattr(value, 'name', None), len(value))})"
    return json.dumps(value, ensure_ascii=False, default=str)
