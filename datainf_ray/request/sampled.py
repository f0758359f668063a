"""Some rows of a corpus, looked at before anything is started: how long they are, and whether any can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted
from datainf_ray.config import RowsConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.preview import fold
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import rows_chunk, spread_chunk
from datainf_ray.corpus.tokens import OK, Encoder, Example

ROWS = 64  #: the first rows of a corpus, that are always looked at
PLACES = 16  #: spread over the rest of it, with so many rows each, that are looked at where none of those can be used
_CALLED = {"train": "training", "queries": "query"}


@dataclass(frozen=True)
class Looked:
    """What was seen of the rows that were looked at."""

    rows: int
    unusable: int  #: that would have no loss
    cut: int  #: with more tokens than max_length
    problem: str | None = None  #: of the first unusable one: its id, its status and why
    merged: int = 0  #: of all rows, those of TSV files that hold tabs and line breaks
    hints: tuple[str, ...] = ()  #: what else is to be said of where they are cut; see `request.cuts`


def first_examples(
    encoder: Encoder, corpus: Corpus, asked: RowsConfig, key: str, adapter: str | None = None
) -> list[Example]:
    """The first rows of a corpus, encoded; and where none of them can be used, others beyond them too.

    `asked` is what the configuration says of the corpus, under `key` ("train" or "queries"). Raises `RequestError`
    where none of all these rows can be used: a run would give nothing. So it does where the tokenizer makes a token of
    one that the model of `adapter` does not have: they were not made for each other.
    """
    reader = RowReader(corpus)
    try:
        examples = encoder.encode(reader.read(rows_chunk(corpus, range(min(ROWS, corpus.rows)))))
        if not _any_usable(examples) and corpus.rows > ROWS:
            examples += encoder.encode(reader.read(spread_chunk(corpus, ROWS, PLACES, ROWS)))
    finally:
        reader.close()
    foreign = next((example for example in examples if example.foreign), None)
    if foreign is not None:
        remedy = "use the tokenizer and the base that the adapter was trained with"
        raise RequestError("model.adapter", adapter, f"does not fit its tokenizer: {_problem(foreign)}", remedy)
    if not _any_usable(examples):
        raise _useless(examples, corpus, asked, key)
    return examples


def looked_at(examples: Sequence[Example], corpus: Corpus, hints: tuple[str, ...] = ()) -> Looked:
    """Counts over some rows of a corpus, with `hints`."""
    bad = [example for example in examples if example.status != OK]
    cut = sum(example.tokens_cut > 0 for example in examples)
    merged = sum(file.merged for file in corpus.files)
    return Looked(len(examples), len(bad), cut, _problem(bad[0]) if bad else None, merged, hints)


def describe(looked: Looked, key: str) -> str | None:
    """In words, what is to be said of the rows of a corpus that were looked at; None where all is well."""
    rows = counted(looked.rows, f"{_CALLED[key]} row")
    said = []
    if looked.unusable:
        said.append(f"{looked.unusable:,} cannot be used (the first is {looked.problem})")
    if looked.cut:
        said.append(f"{looked.cut:,} {'are' if looked.cut > 1 else 'is'} longer than max_length, and cut")
    text = f"of the {rows} that were looked at {', and '.join(said)}" if said else ""
    if looked.hints and not said:
        text = f"{rows} were looked at"
    merged = ""
    if looked.merged:
        merged = f"{counted(looked.merged, f'{_CALLED[key]} row')} of TSV files with tabs and line breaks in a field"
        merged += f": where quotes are part of the text, set {key}.quoting: none"
    return "; ".join(filter(None, (text, *looked.hints, merged))) or None


def _any_usable(examples: Sequence[Example]) -> bool:
    return any(example.status == OK for example in examples)


def _problem(example: Example) -> str:
    why = f": {example.detail}" if example.detail else ""
    return f"{fold(example.id)}: {example.status}{why}"


def _useless(examples: Sequence[Example], corpus: Corpus, asked: RowsConfig, key: str) -> RequestError:
    """The error that says so, and which key is at fault as far as that can be told."""
    some = f"its {counted(corpus.rows, 'row')}" if len(examples) == corpus.rows else f"{len(examples):,} rows looked at"
    problem = f"none of {some} can be used; the first is {_problem(examples[0])}"
    if all(example.status == "no_target_tokens" and example.tokens_cut for example in examples):
        longest = max(example.tokens + example.tokens_cut for example in examples)
        if asked.max_length is not None:
            return RequestError(
                f"{key}.max_length", asked.max_length, problem, f"these rows have up to {longest} tokens"
            )
        problem += f"; the rows have up to {longest} tokens, which is more than the model takes"
    return RequestError(f"{key}.path", ", ".join(asked.paths), problem)
