"""What the report says of each row that it lists, besides its influence: facts, texts, other queries that list it."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup, escape

from datainf_ray.common.words import visible
from datainf_ray.corpus.common_words import Phrases, Rarity
from datainf_ray.corpus.passages import Passage, shortened
from datainf_ray.runs.labels import Labels
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, matrix

_MOST_ROWS = 2**24  # of a run whose rows' files are gone through for the facts of some
_MOST_VALUES = 2**24  # influences that are read for the net score
_WEIGHT = 2  # of the words in common that are marked
_OTHERS = 5  # queries that are named
_PICTURE = "image"  # the role of a passage that describes a file
_SAFE = re.compile(r"[\w./#:@=+,-]{1,200}", re.ASCII)  # an id that a shell and a person read as it is


@dataclass(frozen=True)
class Facts:
    """Of one row; None where it is not known."""

    loss: float | None
    tokens: int | None
    cut: int | None
    own: float | None  #: influence on itself
    net: float | None  #: the mean over the queries of its influence, each in units of the query's root mean square
    predicted: str | None = None  #: by the model itself


@dataclass
class Listed:
    """What is known of the rows that are listed, and of what they and the queries say."""

    facts: dict[int, Facts]
    rows: dict[int, list[Passage]]  #: what each row says
    queries: dict[int, list[Passage]]  #: what the shown rows of each query say
    rarity: Rarity = field(init=False)

    def __post_init__(self) -> None:
        self.rarity = Rarity("\n".join(p.text for p in one) for one in [*self.rows.values(), *self.queries.values()])

    def phrases(self, query: int) -> Phrases:
        """What a query says, to look for it in others; not of a picture that it is a file of so many bytes."""
        return Phrases("\n".join(one.text for one in self.queries.get(query, ()) if one.role != _PICTURE))

    @functools.cached_property
    def labels(self) -> Labels:
        """Those that the rows were given, and those that the model predicts."""
        given = {row: one.text for row, said in self.rows.items() for one in said if one.role == "label"}
        predicted = {row: one.predicted for row, one in self.facts.items() if one.predicted is not None}
        return Labels(given, predicted)

    def label(self, row: int) -> str | None:
        """The label that a row was given."""
        return self.labels.given.get(row)


def facts_of(run: Run, rows: Collection[int]) -> dict[int, Facts]:
    """The facts of some rows of a finished run, by number; none where the run has very many rows."""
    counts = run.record.counts
    if counts is None or counts.rows > _MOST_ROWS or not rows:
        return {}
    whole = run.has_scores and counts.rows * counts.queries <= _MOST_VALUES
    own = ["self_influence"] if run.config["results"].get("self_influence") else []
    columns = ["row", "loss", "tokens", "tokens_cut", "predicted", *own, *(["influence"] if whole else [])]
    wanted, found = pa.array(sorted(rows), pa.int64()), []
    usable = [k for k, status in enumerate(run.queries()["status"].to_pylist()) if status == OK]
    squares, scored = np.zeros(len(usable)), 0
    for part in run.parts(run.part_names(), columns):
        if whole:
            values = matrix(part["influence"])[:, usable].astype(np.float64)
            values = values[np.isfinite(values).all(axis=1)]
            squares, scored = squares + np.einsum("nq,nq->q", values, values), scored + len(values)
        found.append(part.filter(pc.is_in(part["row"], wanted)))
    table = pa.concat_tables(found)
    net: list[float | None] = [None] * len(table)
    if whole and len(usable) > 1 and scored:
        rms = np.sqrt(squares / scored)
        net = (matrix(table["influence"])[:, usable] / np.where(rms > 0, rms, 1.0)).mean(axis=1).tolist()
    each = zip(
        *(table[name].to_pylist() for name in ("row", "loss", "tokens", "tokens_cut")),
        table[own[0]].to_pylist() if own else [None] * len(table),
        net,
        table["predicted"].to_pylist(),
        strict=True,
    )
    return {row: Facts(*rest) for row, *rest in each}


def also(tops: pa.Table) -> dict[int, dict[str, list[int]]]:
    """By row, the queries that list it, by direction: those that list it highest first."""
    found: dict[int, dict[str, list[int]]] = {}
    tops = tops.sort_by([("rank", "ascending"), ("query", "ascending")])
    for row, query, word in zip(*(tops[name].to_pylist() for name in ("row", "query", "direction")), strict=True):
        found.setdefault(row, {}).setdefault(word, []).append(query)
    return found


def told_of(queries: dict[str, list[int]], but: int) -> str | None:
    """For which other queries a row is listed, in words: "harmful to 3, 7 and 2 more, helpful to 1"."""
    told = []
    for word in ("harmful", "helpful"):
        others = [query for query in queries.get(word, ()) if query != but]
        if others:
            more = f" and {len(others) - _OTHERS} more" if len(others) > _OTHERS else ""
            told.append(f"{word} to {', '.join(map(str, others[:_OTHERS]))}{more}")
    return f"also {', '.join(told)}" if told else None


def called(row: dict[str, Any]) -> str:
    """What `datainf curate --ids` is to be given for a row: its id where that is harmless to paste, else its number."""
    return row["id"] if _SAFE.fullmatch(row["id"]) else str(row["row"])


def said(passages: Sequence[Passage], room: int, phrases: Phrases | None, rarity: Rarity) -> Markup | None:
    """What a row says, as HTML of some `room` bytes with marks on what `phrases` and few others have, too.

    None where nothing is known of it, or there is no room for it.
    """
    if not passages or room < 300:
        return None
    made = _html(shortened(passages, room), phrases, rarity)
    if len(made) > 3 * room:  # characters that HTML writes as many, or a mark on every other word
        made = _html(shortened(passages, room * room // len(made)), None, rarity)
    return made


def marked(text: str | None, phrases: Phrases, rarity: Rarity) -> Markup | None:
    """A text as HTML, with marks likewise; None of none."""
    return None if text is None else Markup("").join(_marked(text, phrases, rarity))


def _html(passages: Iterable[Passage], phrases: Phrases | None, rarity: Rarity) -> Markup:
    parts = []
    for passage in passages:
        kind = Markup(' class="answer"') if passage.answer else ""
        text = Markup("").join(_marked(passage.text, phrases, rarity))
        parts.append(Markup("<dt{}>{}</dt><dd dir=auto>{}</dd>").format(kind, visible(passage.role), text))
    return Markup("").join(parts)


def _marked(text: str, phrases: Phrases | None, rarity: Rarity) -> list[Markup]:
    """The text in pieces, escaped, those in common within <mark>."""
    found, at = [], 0
    for start, stop in _joined(text, phrases, rarity):
        found += [escape(visible(text[at:start])), Markup("<mark>{}</mark>").format(visible(text[start:stop]))]
        at = stop
    return [*found, escape(visible(text[at:]))]


def _joined(text: str, phrases: Phrases | None, rarity: Rarity) -> list[tuple[int, int]]:
    """Where what is in common begins and ends, in order; what overlaps is one."""
    spans: list[tuple[int, int]] = []
    for span in phrases.common(text, rarity) if phrases is not None else ():
        if span.weight < _WEIGHT:
            continue
        start, stop = span.start, span.stop
        while spans and spans[-1][1] > start:
            start = min(start, spans.pop()[0])
        spans.append((start, stop))
    return spans
