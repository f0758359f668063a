"""Rows as the model sees them: token ids, which of them are targets, and a line of text for people.

How rows become tokens (all are cut from the right at `max_length`):

- text: the tokenizer's tokens with its own special tokens, then EOS if it has one; every token is a target.
- prompt and completion: tokenized separately, so that the prompt's tokens never depend on the completion; the prompt
  with the special tokens that begin a text, then the completion, then EOS. The completion and EOS are targets.
- messages: what the chat template gives, token for token; the assistant's turns are targets (see `chat`).
- input_ids and labels: as they are. Without labels every token is a target.
- classification: the tokenizer's own encoding of text, or of text and text_pair; the target is the label.

The first token of a causal row is never a target: nothing predicts it. No text gets a second BOS or EOS where it
already begins or ends with one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import one_line
from datainf_ray.corpus.chat import ChatTemplate, fold_messages
from datainf_ray.corpus.labels import parse_label
from datainf_ray.corpus.preview import LENGTH, fold, fold_pair
from datainf_ray.corpus.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a label that is no target, as everywhere in PyTorch


@dataclass
class Example:
    """One row, encoded; an unreadable one has no tokens."""

    row: int
    id: str
    status: str  #: ok, no_target_tokens or unreadable
    detail: str = ""  #: why the status is not ok
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  #: causal: as long as input_ids, not shifted, -100 where no target
    target: int | float | None = None  #: classification: the class, or the number with one label
    token_type_ids: list[int] | None = None
    preview: str = ""

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


class Encoder:
    """Encodes the rows of one corpus.

    kind: the corpus' kind of row. vocab_size: the number of token ids the model has, where that is not the
    tokenizer's; given ids are checked against it. Without a tokenizer only rows of kind `tokens` can be encoded.
    Raises `RequestError` where messages are to be encoded and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        kind: str,
        task: str,
        max_length: int | None,
        num_labels: int | None = None,
        label2id: Mapping[str, int] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if tokenizer is None and kind != "tokens":
            raise ValueError(f"rows of kind {kind!r} need a tokenizer")
        self._tokenizer: Any = tokenizer
        self._kind, self._max_length = kind, max_length
        self._classes = task == "sequence-classification"
        if self._classes and num_labels is None:
            raise ValueError("classification needs to know the number of labels")
        self._num_labels, self._label2id = num_labels or 0, label2id
        self._names = {index: name for name, index in (label2id or {}).items()}
        self._vocab = vocab_size or (None if tokenizer is None else len(tokenizer))
        self._eos = None if tokenizer is None else tokenizer.eos_token_id
        self._closes = kind in ("text", "prompt-completion") and self._adds_eos()
        self._template = ChatTemplate(tokenizer) if kind == "messages" else None

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """One example per row, in order. A row that cannot be encoded gets a status; none raises."""
        good = [position for position, row in enumerate(rows) if row.problem is None]
        tokens = dict(zip(good, self._tokenized([rows[position].fields for position in good]), strict=True))
        examples = []
        for position, row in enumerate(rows):
            example = Example(row.row, row.id, "ok")
            try:
                if row.problem is not None:
                    raise ValueError(row.problem)
                self._fill(example, row.fields, tokens[position])
            except Exception as error:  # whatever a tokenizer or a template makes of hostile text
                example = Example(row.row, row.id, "unreadable", fold(one_line(error)))
            example.preview = self._preview(row, example)
            examples.append(example)
        return examples

    def _tokenized(self, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The rows' texts as tokens, all in one call; one by one where some text makes the tokenizer fail."""
        if self._kind not in ("text", "prompt-completion", "classification") or not rows:
            return [{} for _ in rows]
        try:
            return self._batch(rows)
        except Exception as error:
            if len(rows) == 1:
                return [{"error": error}]
            return [tokens for row in rows for tokens in self._tokenized([row])]

    def _batch(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._kind == "text":
            return [{"text": ids} for ids in self._ids([row["text"] for row in rows])]
        if self._kind == "prompt-completion":
            prompts = self._ids([row["prompt"] for row in rows])
            texts = [row["completion"] for row in rows]
            completions = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        made = self._tokenizer(
            [row["text"] for row in rows],
            pairs,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            return_attention_mask=False,
        )
        return [{name: made[name][i] for name in made} for i in range(len(rows))]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens with the special tokens that the tokenizer puts before a text, once, and without an EOS of its own."""
        ids: list[list[int]] = self._tokenizer(texts, verbose=False)["input_ids"]
        if self._closes:
            ids = [line[:-1] for line in ids]
        bos, doubled = self._tokenizer.bos_token, [self._tokenizer.bos_token_id] * 2
        if bos:
            pairs = zip(texts, ids, strict=True)
            ids = [line[1:] if text.startswith(bos) and line[:2] == doubled else line for text, line in pairs]
        return ids

    def _adds_eos(self) -> bool:
        return self._eos is not None and self._tokenizer("a")["input_ids"][-1:] == [self._eos]

    def _fill(self, example: Example, fields: dict[str, Any], tokens: dict[str, Any]) -> None:
        """Fills in the tokens and targets. Raises ValueError, or what the tokenizer raised, where that cannot be."""
        if "error" in tokens:
            raise tokens["error"]
        if self._classes:
            self._classified(example, fields, tokens)
        elif self._kind == "text":
            ids = self._ended(tokens["text"]) if fields["text"] else []
            self._causal(example, ids, ids)
        elif self._kind == "prompt-completion":
            prompt, completion = tokens["prompt"], self._ended(tokens["completion"])
            self._causal(example, prompt + completion, [IGNORED] * len(prompt) + completion)
        elif self._template is not None:
            ids, spans = self._template.encode(fields["messages"])
            labels = [IGNORED] * len(ids)
            for start, stop in spans:
                labels[start:stop] = ids[start:stop]
            self._causal(example, ids, labels)
        else:
            ids = self._given(fields["input_ids"], "input_ids")
            labels = self._given(fields["labels"], "labels") if "labels" in fields else ids
            if len(labels) != len(ids):
                raise ValueError(f"{len(ids)} input_ids but {len(labels)} labels")
            self._causal(example, ids, labels)

    def _classified(self, example: Example, fields: dict[str, Any], tokens: dict[str, Any]) -> None:
        if self._kind == "tokens":
            example.input_ids = self._given(fields["input_ids"], "input_ids")[: self._max_length]
        elif fields["text"]:
            example.input_ids, example.token_type_ids = tokens["input_ids"], tokens.get("token_type_ids")
        else:
            raise ValueError("text is empty")
        if not example.input_ids:
            raise ValueError("there are no tokens")
        example.target = parse_label(fields["label"], self._num_labels, self._label2id)

    def _causal(self, example: Example, ids: Sequence[int], labels: Sequence[int]) -> None:
        example.input_ids, example.labels = list(ids[: self._max_length]), list(labels[: self._max_length])
        if example.labels:
            example.labels[0] = IGNORED
        if all(label == IGNORED for label in example.labels):
            cut = any(label != IGNORED for label in labels[1:])
            example.status = "no_target_tokens"
            example.detail = f"all of them lie beyond max_length {self._max_length}" if cut else "nothing to predict"

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if self._eos is None or ids[-1:] == [self._eos] else [*ids, self._eos]

    def _given(self, ids: list[Any], role: str) -> list[int]:
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise ValueError(f"{role} holds {token!r}, which is no token id")
            if role == "labels" and token == IGNORED:
                continue
            if token < 0 or (self._vocab is not None and token >= self._vocab):
                limit = "" if self._vocab is None else f" in 0..{self._vocab - 1}"
                raise ValueError(f"{role} holds {token}, which is no token id{limit}")
        return ids

    def _preview(self, row: Row, example: Example) -> str:
        """At most 300 characters of what the row says, on one line. The label comes first, where there is one."""
        texts = {role: value for role, value in row.fields.items() if isinstance(value, str)}
        if self._kind == "prompt-completion":
            return fold_pair(texts.get("prompt", ""), texts.get("completion", ""))
        if self._kind == "messages":
            return fold_messages(row.fields.get("messages"))
        if self._kind == "text":
            return fold(texts.get("text", ""))
        label = "" if example.target is None else f"[{self._names.get(example.target, example.target)}] "
        if self._kind == "classification":
            return fold(" | ".join((label + texts.get("text", ""), *filter(None, [texts.get("text_pair")]))))
        ids = example.input_ids[:LENGTH]
        return fold(label + (" ".join(map(str, ids)) if self._tokenizer is None else self._tokenizer.decode(ids)))
