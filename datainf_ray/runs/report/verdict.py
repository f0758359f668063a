"""The report's first section: which rows stand out, on the side that answers the question, and what follows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.words import counted, percent
from datainf_ray.corpus.preview import fold_ends
from datainf_ray.runs.cut import FEWEST, Cut, SideCut, cut_of
from datainf_ray.runs.results import Run
from datainf_ray.runs.together import top_of_all

#: Influences, rows × queries, that are gone through: 1.1 µs each on one core, of which most is the exchange of rows of
#: several queries, so that a run's end waits 20 s for this at most; 262,144 rows × 64 queries took 18 s and 0.8 GB.
_MOST = 2**24
_FIRST = 5  # rows that are shown
_PREVIEW = 200  # characters of each
_QUERIES = 10  # that are named
_CARRIED = 10  # rows of which the share is told where none stands out

_MEANS = {"helpful": "help", "harmful": "harm"}
_SAY = "If not, the other side counts: queries.are says which."
_OTHER = {"helpful": "harmful", "harmful": "helpful"}


@dataclass(frozen=True)
class Alone:
    """A query of which rows stand out by itself."""

    query: int
    id: str
    rows: int
    share: float  #: of the side's influence on it
    shown: bool  #: on the page, further down


@dataclass(frozen=True)
class Verdict:
    """What the section says; texts are plain."""

    side: str  #: that answers the question
    head: str
    told: Sequence[str]  #: paragraphs
    alone: Sequence[Alone] = ()
    alone_more: int = 0
    alone_head: str | None = None
    first: Sequence[dict[str, Any]] = field(default=())  #: rows to read, as `top_of_all` has them
    command: str | None = None
    to: str | None = None  #: with which it writes the corpus


def verdict(
    run: Run,
    usable: Sequence[dict[str, Any]],
    shown: Collection[int],
    typical_loss: float | None,
    command: str,
    to: str,
) -> Verdict:
    """Of a finished run. `usable` are its queries that have scores, of which those numbered `shown` are on the page.

    `command` is `datainf curate` with the run, and `to` its option for the new corpus.
    """
    side, why = _sided(usable, run.config["queries"].get("are"), typical_loss)
    unknown = _unknown(run, usable)
    if unknown is None and _size(run, usable) > _MOST:
        large = f"The run has more influences than the {_MOST:,} that the report goes through: this command tells."
        head = f"Whether {side} rows stand out is not told here."
        return Verdict(side, head, [*why, large], command=f"{command} --because {side}")
    found = unknown or _found(run, side)
    if isinstance(found, str):
        return Verdict(side, "Whether rows stand out is not known.", [found])
    cut, first = found
    one, many = cut.of(side), len(usable)
    alone = [
        Alone(usable[k]["query"], usable[k]["id"], each.stand_out, each.share, usable[k]["query"] in shown)
        for k, each in enumerate(cut.each(side))
        if each.stand_out and many > 1
    ]
    alone.sort(key=lambda each: (-each.rows, each.query))
    suggested = one.stand_out > 0
    return Verdict(
        side,
        _head(cut, side, many),
        [*_told(cut, side, many), *why, _of_other(cut.of(_OTHER[side]), many)],
        alone[:_QUERIES],
        len(alone[_QUERIES:]),
        _of_alone(one, len(alone), many) if alone else None,
        first,
        f"{command} --because {side} --drop auto --dry-run" if suggested else None,
        to.strip() if suggested else None,
    )


def asked(query: dict[str, Any], are: str | None, typical_loss: float | None) -> tuple[str, str]:
    """The direction that answers what is asked by a query, and why it is taken for that.

    `are` is the configuration's `queries.are`, and `typical_loss` that of the median training row.
    """
    if are == "mistakes":
        return "helpful", "The queries are mistakes (queries.are): the helpful rows taught them."
    if are == "right":
        return "harmful", "The queries are right answers (queries.are): the harmful rows speak against them."
    if typical_loss is None or query["loss"] is None:
        return "harmful", ""
    likes = query["loss"] <= typical_loss
    how = f"Its loss, {query['loss']:.2f}, is {'at most' if likes else 'above'} that of the median training row, "
    how += f"{typical_loss:.2f}: "
    if likes:
        return "helpful", f"{how}the model says this. Is it a mistake? The helpful rows taught it."
    return "harmful", f"{how}the model does not say this. Is it right? The harmful rows speak against it."


def _sided(queries: Sequence[dict[str, Any]], are: str | None, typical_loss: float | None) -> tuple[str, list[str]]:
    """The side that answers what most of the queries ask, and why, in a sentence or none."""
    each = [asked(query, are, typical_loss) for query in queries]
    helpful = sum(side == "helpful" for side, _ in each)
    side = "helpful" if 2 * helpful > len(each) else "harmful"
    if len(each) < 2 or are is not None:
        why = each[0][1] if each else ""
        return side, [f"{why.replace('Its loss', 'The query’s loss')} {'' if are else _SAY}".rstrip()] if why else []
    if typical_loss is None:
        return side, []
    of = f"The loss of {helpful if side == 'helpful' else len(each) - helpful} of the {len(each):,} queries is"
    if side == "helpful":
        text = f"{of} at most that of the median training row, {typical_loss:.2f}: the model says these. "
        return side, [f"{text}Are they mistakes? The helpful rows taught them. {_SAY}"]
    text = f"{of} above that of the median training row, {typical_loss:.2f}: the model does not say these. "
    return side, [f"{text}Are they right? The harmful rows speak against them. {_SAY}"]


def _unknown(run: Run, usable: Sequence[dict[str, Any]]) -> str | None:
    """Why a run's rows cannot be told apart, where that is known beforehand."""
    if not usable:
        return "No query has scores."
    if not run.has_scores:
        return (
            "The run stored no scores (results.scores: false): how far its first rows are from the others is unknown."
        )
    return None


def _size(run: Run, usable: Sequence[dict[str, Any]]) -> int:
    counts = run.record.counts
    assert counts is not None  # of a run that is done
    return counts.rows * len(usable)


def _found(run: Run, side: str) -> tuple[Cut, list[dict[str, Any]]] | str:
    """Where the run may be cut, with the first rows of a side; else why that cannot be told."""
    try:
        cut = cut_of(run)
        rows = top_of_all(run, _FIRST, side == "harmful").to_pylist()
    except RequestError as error:
        return f"It cannot be told: {one_line(error.problem)}."
    return cut, [{**row, "preview": row["preview"] and fold_ends(row["preview"], _PREVIEW)} for row in rows]


def _head(cut: Cut, side: str, queries: int) -> str:
    one = cut.of(side)
    if one.stand_out:
        rows, all_of = counted(one.stand_out, f"{side} row"), _all(side, queries)
        what = "stands out: it carries" if one.stand_out == 1 else "stand out: they carry"
        return f"{rows} {what} {percent(one.share)} of {all_of}."
    if cut.scored < FEWEST:
        return "There are too few rows to tell whether any stands out."
    return f"No {side} row stands out{' for all queries together' * (queries > 1)}."


def _told(cut: Cut, side: str, queries: int) -> list[str]:
    """What the head rests on."""
    one = cut.of(side)
    if one.stand_out:
        text = f"Behind them is a gap such as noise has with a probability of {one.p:.1g}"
        if one.by_chance is not None:
            text += f"; with each query’s rows exchanged at random, {one.by_chance:.2g} rows are beyond it"
        return [f"{text}. Read them first."]
    if cut.scored < FEWEST:
        have = "has" if cut.scored == 1 else "have"
        told = f"{counted(cut.scored, 'row')} {have} a score, and it takes {FEWEST}: no row is suggested to be dropped."
    else:
        told = (
            "Their influences fall off without a gap to cut in: no row is suggested to be dropped. Read from the top."
        )
    if one.rows > _CARRIED:
        share = float(np.interp(_CARRIED, one.curve.rows, one.curve.share))
        told += f" The first {_CARRIED} of {one.rows:,} {side} rows carry {percent(share)} of {_all(side, queries)}."
    return [told]


def _of_alone(one: SideCut, alone: int, queries: int) -> str:
    """What stands above the queries of which rows stand out, each taken alone."""
    text = f"rows stand out for {alone:,} of the {queries:,} queries, each taken alone"
    return f"{text[0].upper()}{text[1:]}:" if one.stand_out else f"But {text}. Read these:"


def _of_other(one: SideCut, queries: int) -> str:
    """The side that was not asked for."""
    if not one.stand_out:
        return f"On the other side no {one.side} row stands out."
    what = "row stands" if one.stand_out == 1 else "rows stand"
    text = f"On the other side {one.stand_out:,} {one.side} {what} out, with {percent(one.share)}"
    return f"{text} of {_all(one.side, queries)}: --because {one.side}."


def _all(side: str, queries: int) -> str:
    return f"all {_MEANS[side]} to {'the query' if queries == 1 else f'the {queries:,} queries'}"
