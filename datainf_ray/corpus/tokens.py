"""Rows as the model sees them: what a task makes of a row, with a line of text for people.

A task says how its rows become tokens; what tasks have in common is here. Token ids that the model does not have are
found here, whatever the task and the kind of row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import one_line
from datainf_ray.corpus.passages import Passage, clean
from datainf_ray.corpus.preview import fold, fold_ends, line_of
from datainf_ray.corpus.rows import Row
from datainf_ray.corpus.targets import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OK = "ok"  # as in `runs.schemas`
_DECODED = 32_768  # tokens that are made text for people

#: Which way rows become tokens: another number where a change makes other tokens, or other targets, of the same rows.
#: 1: prompt and completion each by itself, a turn by what stands before it. 2: as one text, by its place in the talk.
ENCODING = 2

#: A row's fields, by role.
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class EncoderSpec:
    """What the rows of one corpus are encoded with; the same on the driver and on every worker."""

    kind: str  #: the corpus' kind of row
    tokenizer: Any  #: a `PreTrainedTokenizerBase`; None where the model has none, and then rows are token ids
    max_length: int | None  #: tokens; None: no limit
    vocabulary: int | None = None  #: token ids that the model has, where that is not the tokenizer's number
    facts: Mapping[str, Any] = field(default_factory=dict)  #: what the task knows of the model; see `Task.facts`
    targets: str = "auto"  #: which tokens have a loss, as the corpus' `targets` says
    key: str = "train"  #: what the configuration calls the corpus, for errors
    roles: tuple[str, ...] = ()  #: those that the corpus has columns for
    token_types: int | None = None  #: token types that the model has; None where it does not say
    chat_template: str | None = None  #: the text of one to use for the tokenizer's own
    chat_keywords: Mapping[str, Any] = field(default_factory=dict)  #: what the template is given for every row


@dataclass
class Encoded:
    """What a task makes of one row.

    Example: `Encoded({"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, lengths=(3,))`.
    """

    values: dict[str, Any]  #: what batches are made from, in plain Python values
    lengths: tuple[int, ...]  #: tokens of each sequence: one for a text, two for a source and its target
    status: str = OK  #: ok, or why the row has no loss
    detail: str = ""  #: why the status is not ok
    tokens_cut: int = 0  #: that the row has beyond `EncoderSpec.max_length`, and the model does not see
    rule: str = ""  #: in words, what made the targets: the template's own marks, everything behind the prompt, …
    picture: bytes | None = None  #: what people are shown of its picture, if it has one; see `corpus.thumbnails`


@dataclass
class Example:
    """One row of a corpus, encoded; an unreadable one has no tokens."""

    row: int
    id: str
    status: str  #: ok, no_target_tokens, unreadable or another that the task gives
    detail: str = ""  #: why the status is not ok
    values: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    preview: str = ""
    passages: Sequence[Passage] = ()  #: what it says
    tokens_cut: int = 0  #: that it has beyond max_length
    rule: str = ""  #: what made the targets
    picture: bytes | None = None  #: a small one of its picture, for people
    foreign: bool = False  #: it is unreadable because the tokenizer makes a token of it that the model does not have

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


#: Encodes rows: one result per row, in order, an exception for a row that cannot be encoded. Where it raises instead,
#: the rows are tried in smaller portions until it is known which one is at fault.
Encode = Callable[[Sequence[Fields]], Sequence[Encoded | Exception]]
#: Any text that says what a row is about; None in place of the values of a row that could not be encoded.
Preview = Callable[[Fields, Mapping[str, Any] | None], str]
#: What a row says, likewise.
Says = Callable[[Fields, Mapping[str, Any] | None], Sequence[Passage]]


class ForeignTokenError(ValueError):
    """The tokenizer has made a token that the model's vocabulary does not have."""


def require_known(spec: EncoderSpec, ids: Any, role: str) -> None:
    """Raises `ForeignTokenError` where one of the tokens that the tokenizer made is none of the model's."""
    if spec.vocabulary is None or not ids or not isinstance(ids, list) or not isinstance(ids[0], int):
        return  # a task of the user's own may call anything so
    worst = max(ids)
    if worst >= spec.vocabulary:
        called = "" if spec.tokenizer is None else f" ({spec.tokenizer.convert_ids_to_tokens(worst)!r})"
        there = f"and the model's vocabulary has {spec.vocabulary:,} tokens"
        raise ForeignTokenError(f"{role} holds token {worst}{called} of the tokenizer, {there}")


class Encoder:
    """Encodes the rows of one corpus, good and bad."""

    def __init__(
        self, encode: Encode, says: Says, spec: EncoderSpec, preview: Preview | None = None, takes_id: bool = False
    ) -> None:
        self._encode, self._says, self._spec, self._preview = encode, says, spec, preview
        self._takes_id = takes_id

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """One example per row, in order. A row that cannot be encoded gets a status; none raises."""
        good = [row for row in rows if row.problem is None]
        found = iter(self._found([row.fields | {"id": row.id} if self._takes_id else row.fields for row in good]))
        examples = []
        for row in rows:
            made = self._known(next(found)) if row.problem is None else ValueError(row.problem)
            if isinstance(made, Encoded):
                example = Example(row.row, row.id, made.status, made.detail, made.values, made.lengths)
                example.tokens_cut, example.rule, example.picture = made.tokens_cut, made.rule, made.picture
            else:
                example = Example(row.row, row.id, "unreadable", fold(one_line(made)))
                example.foreign = isinstance(made, ForeignTokenError)
            self._tell(example, row.fields, made.values if isinstance(made, Encoded) else None)
            examples.append(example)
        return examples

    def _known(self, made: Encoded | Exception) -> Encoded | Exception:
        """What was made of a row, unless the model does not have all of its tokens."""
        try:
            if isinstance(made, Encoded):
                require_known(self._spec, made.values.get("input_ids"), "input_ids")
        except ForeignTokenError as error:
            return error
        return made

    def _found(self, rows: Sequence[Fields]) -> list[Encoded | Exception]:
        """All in one call; in two halves where some row makes that fail, and so on."""
        if not rows:
            return []
        try:
            found = list(self._encode(rows))
        except Exception as error:  # whatever a tokenizer or a template makes of hostile text
            if len(rows) == 1:
                return [error]
            middle = len(rows) // 2
            return [*self._found(rows[:middle]), *self._found(rows[middle:])]
        if len(found) != len(rows):
            raise ValueError(f"the task's encoder made {len(found)} examples of {len(rows)} rows")
        return found

    def _tell(self, example: Example, fields: Fields, values: Mapping[str, Any] | None) -> None:
        """Set what the row says, and its preview."""
        try:
            example.passages = clean(self._says(fields, values))
            line = line_of(example.passages) if self._preview is None else self._preview(fields, values)
            example.preview = fold_ends(line)
        except Exception as error:  # a row may hold anything where it could not be read
            example.preview = fold(f"({one_line(error)})")


def texts_of(fields: Fields) -> dict[str, str]:
    """The fields that are text."""
    return {role: value for role, value in fields.items() if isinstance(value, str)}


def decoded(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> str:
    """Tokens as text, where there is a tokenizer; of very many those at both ends."""
    if len(ids) > _DECODED:
        return " … ".join(decoded(tokenizer, part) for part in (ids[: _DECODED // 2], ids[-_DECODED // 2 :]))
    ids = list(ids)
    return " ".join(map(str, ids)) if tokenizer is None else str(tokenizer.decode(ids))


def ended(tokenizer: Any, ids: list[int]) -> list[int]:
    """The tokens with an EOS at their end, where the tokenizer has one."""
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def given_ids(spec: EncoderSpec, ids: Sequence[Any], role: str) -> list[int]:
    """Token ids that a row brings, as they are. Raises ValueError where one is none, or none of the model's."""
    vocabulary = spec.vocabulary or (None if spec.tokenizer is None else len(spec.tokenizer))
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise ValueError(f"{role} holds {token!r}, which is no token id")
        if role == "labels" and token == IGNORED:
            continue
        if token < 0 or (vocabulary is not None and token >= vocabulary):
            limit = "" if vocabulary is None else f" in 0..{vocabulary - 1}"
            raise ValueError(f"{role} holds {token}, which is no token id{limit}")
    return list(ids)


def untargeted(labels: Sequence[int], all_labels: Sequence[int], max_length: int | None) -> tuple[str, str]:
    """The status and detail of a row with these labels, of which `all_labels` were before they were cut."""
    if any(label != IGNORED for label in labels):
        return OK, ""
    cut = any(label != IGNORED for label in all_labels)
    return "no_target_tokens", f"all of them lie beyond max_length {max_length}" if cut else "nothing to predict"


def cut_off(tokenizer: Any, made: Sequence[int], max_length: int | None, **texts: Any) -> int:
    """How many tokens the tokenizer has cut off at `max_length`, where it made `made` of `texts`."""
    if max_length is None or len(made) < max_length:
        return 0
    return max(len(tokenizer(**texts, verbose=False)["input_ids"]) - len(made), 0)


def each(encode: Callable[[Fields], Encoded]) -> Encode:
    """An `Encode` of what encodes one row; a row that makes it raise costs no other row anything."""

    def attempt(fields: Fields) -> Encoded | Exception:
        try:
            return encode(fields)
        except Exception as error:  # it is the row's; the encoder gives it a status
            return error

    return lambda rows: [attempt(fields) for fields in rows]
