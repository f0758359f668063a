"""Rows as the model sees them, for people and programs: their tokens, and which of them have a loss."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from datainf_ray.common.words import counted, escaped, printable
from datainf_ray.corpus.targets import IGNORED
from datainf_ray.corpus.tokens import OK, Example

OPEN, CLOSE = "⟦", "⟧"  #: around targets, where there is no colour

_BACK = (16, 256)  # tokens before a run that are decoded with it
_HALVES = 8  # tokens that may be parts of one character
_BREAKS = re.compile(r"([\n\t])")
_STYLE = "white-space:pre-wrap;font-family:monospace;margin:.3em 0 1em"
_MARK = "background:#2e7d3240;border-bottom:2px solid #2e7d32"


class Token(NamedTuple):
    """One token: its id, what the tokenizer calls it, and whether it has a loss."""

    id: int
    token: str
    target: bool


class Run(NamedTuple):
    """Tokens one after the other that all have a loss or all have none, as text."""

    text: str
    target: bool


class TokenSequence(BaseModel):
    """One sequence of tokens of a row; `name` is what the model calls it."""

    model_config = ConfigDict(frozen=True)

    name: str
    tokens: list[Token]
    runs: list[Run]

    @field_serializer("tokens", "runs")
    def _objects(self, values: list[Token] | list[Run]) -> list[dict[str, Any]]:
        return [value._asdict() for value in values]


class SeenRow(BaseModel):
    """A row as the model sees it. `str` gives it as text with the targets between ⟦ and ⟧."""

    model_config = ConfigDict(frozen=True)

    corpus: str = Field(description="train or queries")
    row: int
    id: str
    status: str
    detail: str = Field(description="why the status is not ok")
    tokens: int
    targets: int = Field(description="tokens that have a loss")
    tokens_cut: int = Field(description="beyond max_length, which the model does not see")
    rule: str = Field(description="what made the targets")
    beside: dict[str, Any] = Field(description="what else the model is given of the row, such as the class")
    sequences: list[TokenSequence]

    @property
    def heading(self) -> str:
        """What is to be said of it, in a line."""
        said = [f"{self.corpus} row {self.row:,}", escaped(self.id, 80), counted(self.tokens, "token")]
        if self.status != OK:
            said.append(f"{self.status}: {escaped(self.detail)}" if self.detail else self.status)
        elif self.rule:
            said.append(f"{counted(self.targets, 'target')}: {self.rule}" if self.targets else f"target: {self.rule}")
        if self.tokens_cut:
            said.append(f"{self.tokens_cut:,} more beyond max_length, which are cut")
        said += [f"{escaped(name)} {escaped(str(value), 80)}" for name, value in self.beside.items()]
        return " · ".join(said)

    def pieces(self) -> Iterator[Run]:
        """The text of all sequences, run by run; a line between two sequences."""
        for k, sequence in enumerate(self.sequences):
            if k:
                yield Run(f"\n── {escaped(sequence.name)} ──\n", False)
            yield from (Run(_shown(run.text), run.target) for run in sequence.runs)

    def __str__(self) -> str:
        marked = "".join(f"{OPEN}{text}{CLOSE}" if target else text for text, target in self.pieces())
        return f"{self.heading}\n{marked}"

    def short(self, length: int = 160) -> str:
        """The text on one line: of every run at most `length` characters, its beginning and its end."""
        line = ""
        for text, target in self.pieces():
            kept = text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"
            line += f"{OPEN}{kept}{CLOSE}" if target else kept
        return printable(line, 20 * length)

    def _repr_html_(self) -> str:
        text = "".join(
            f'<span style="{_MARK}">{html.escape(text)}</span>' if target else html.escape(text)
            for text, target in self.pieces()
        )
        return f'<div><b>{html.escape(self.heading)}</b><div style="{_STYLE}">{text}</div></div>'


class SeenRows(tuple[SeenRow, ...]):
    """Rows as the model sees them, for a program and for a notebook's cell."""

    def _repr_html_(self) -> str:
        return "".join(row._repr_html_() for row in self)


def seen(example: Example, tokenizer: Any, corpus: str) -> SeenRow:
    """An encoded row of the corpus "train" or "queries" as the model sees it.

    A row of one sequence has its targets marked by its `labels`. Where it has two, as a source and what it becomes,
    the second's tokens are the targets.
    """
    ids, labels = (example.values.get(name) for name in ("input_ids", "labels"))
    sequences = []
    if _is_ids(ids):
        marks = [False] * len(ids)
        if len(example.lengths) == 1 and _is_ids(labels) and len(labels) == len(ids):
            marks = [label != IGNORED for label in labels]
        sequences.append(_sequence("input_ids", ids, marks, tokenizer))
        if len(example.lengths) > 1 and _is_ids(labels):
            sequences.append(_sequence("labels", labels, [label != IGNORED for label in labels], tokenizer))
    return SeenRow(
        corpus=corpus,
        row=example.row,
        id=example.id,
        status=example.status,
        detail=example.detail,
        tokens=example.tokens,
        targets=sum(token.target for sequence in sequences for token in sequence.tokens),
        tokens_cut=example.tokens_cut,
        rule=example.rule,
        beside=_beside(example.values),
        sequences=sequences,
    )


def _sequence(name: str, ids: Sequence[int], marks: Sequence[bool], tokenizer: Any) -> TokenSequence:
    if tokenizer is None:
        called = [str(token) for token in ids]
    else:
        called = [str(token) for token in tokenizer.convert_ids_to_tokens([max(token, 0) for token in ids])]
    tokens = [Token(*one) for one in zip(ids, called, marks, strict=True)]
    return TokenSequence(name=name, tokens=tokens, runs=list(_runs(ids, marks, tokenizer)))


def _runs(ids: Sequence[int], marks: Sequence[bool], tokenizer: Any) -> Iterator[Run]:
    """The text between two edges: what the tokens up to the second add to those up to the first.

    Tokens by themselves would not do: some lose their space, and some are half of a character.
    """
    edges = [k for k in range(1, len(ids)) if marks[k] != marks[k - 1]] + [len(ids)]
    start = 0
    for edge in edges:
        if edge == start:  # no tokens at all
            continue
        begin, before = _before(tokenizer, ids, start)
        text = _decoded(tokenizer, ids[begin:edge])
        same = next(
            (k for k, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text))
        )
        yield Run(text[same:], marks[start])
        start = edge


def pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text: all of them one after the other are the row's text, as `SeenRow` shows it.

    Of a character of several tokens all is in the last one; the others have nothing.
    """
    found: list[str] = []
    start = 0  # the first token of which the text is not told yet
    for k in range(1, len(ids) + 1):
        begin, before = _before(tokenizer, ids, start)
        text = _decoded(tokenizer, ids[begin:k])
        if text.endswith("\ufffd") and k < len(ids) and k - start < _HALVES:
            found.append("")
            continue
        same = next(
            (n for n, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text))
        )
        found.append(_shown(text[same:]))
        start = k
    return found


def _before(tokenizer: Any, ids: Sequence[int], start: int) -> tuple[int, str]:
    """Where to begin to decode what goes on at `start`, and the text from there to `start`.

    Not so far back that a row of many runs would take long, but at no place within a character.
    """
    for count in _BACK:
        begin = start - count
        if begin <= 0:
            break
        text = _decoded(tokenizer, ids[begin:start])
        if "\ufffd" not in text:
            return begin, text
    return 0, _decoded(tokenizer, ids[:start])


def _shown(text: str) -> str:
    """`text` with what cannot be seen written as \\u200b or \\r: the model sees it. Line breaks and tabs stay."""
    return "".join(part if part in "\n\t" else escaped(part) for part in _BREAKS.split(text))


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text, special ones too, with the spaces as they are."""
    known = [max(token, 0) for token in ids]
    if tokenizer is None:
        return " ".join(map(str, known))
    return str(tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _is_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(token, int) for token in value)


def _beside(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row's values that are not its tokens: the plain ones."""
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}
