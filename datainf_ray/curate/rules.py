"""What is asked for: which rows stay, by what they are blamed with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted, meant
from datainf_ray.runs.column import BLOCK, Column
from datainf_ray.runs.order import cuts
from datainf_ray.runs.scores import ACROSS, SIGNS, Across, Because, Scores, in_order

#: What becomes of a row: it stays; it goes by the rule; as a near-duplicate of one that does; because it has no score.
STAYS, GOES, SIBLING, UNKNOWN = range(4)
#: The rules, of which one is asked for.
RULES = ("drop", "drop_above", "select", "between", "sample", "ids", "weights", "annotate")
AUTO = "auto"  #: of `drop`
_WHOLE = ("weights", "annotate")  # of which all rows stay
_EITHER = ("ids", "annotate")  # which are the same whoever is to blame
_SELECTING = ("select", "between", "sample")  # a row without a score is not among what they select
WithoutScore = Literal["keep", "drop"]

_EXPLAINED = (
    "are the queries mistakes, or good answers? helpful: they are mistakes, and the rows that taught them, those that "
    "lower their loss, are to blame. harmful: they are good answers, and the rows that spoil them, those that raise "
    "their loss, are to blame"
)


@dataclass(frozen=True)
class Rule:
    """A request that was understood: `name` is one of `RULES`, and its numbers are those that it needs."""

    name: str
    because: Because
    across: Across = "mean"
    count: float = 0  #: rows, or a share of them where `shared`
    shared: bool = False
    auto: bool = False  #: as many as stand out of what chance would give
    above: float = 0.0  #: in RMS
    band: tuple[float, float] = (0.0, 1.0)  #: shares of the rows, the least blamed first
    per: str | None = None  #: "query", or a column of the corpus
    temperature: float = 1.0
    seed: int = 0
    ids: tuple[str, ...] = ()
    siblings: bool = False
    without_score: WithoutScore = "keep"

    @property
    def whole(self) -> bool:
        """Whether all rows stay, with columns added."""
        return self.name in _WHOLE

    def rows(self, scored: int, rows: int) -> int:
        """How many rows the rule is to take, of `scored` ones. Raises `RequestError` where there are not as many."""
        count = max(1, round(self.count * rows)) if self.shared else int(self.count)
        if count > scored:
            raise RequestError(f"--{self.name}", count, f"only {counted(scored, 'row')} have a score")
        return count


@dataclass
class Decided:
    """What becomes of every row, and by what."""

    fate: np.ndarray  #: one of STAYS, GOES, SIBLING, UNKNOWN a row (uint8)
    score: Column  #: what it is blamed with, in RMS; NaN: it has no score
    siblings: dict[int, int] = field(default_factory=dict)  #: of a row that goes as one, the row that it is like


def rule_of(
    because: str | None,
    *,
    across: str = "mean",
    drop: str | int | float | None = None,
    drop_above: float | None = None,
    select: str | int | float | None = None,
    between: Sequence[str] | None = None,
    sample: str | int | float | None = None,
    ids: Sequence[str] = (),
    weights: bool = False,
    annotate: bool = False,
    per: str | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    near_duplicates: bool = False,
    without_score: str | None = None,
) -> Rule:
    """The rule that is asked for. Raises `RequestError` where that is none, or several that do not go together."""
    given = {
        "drop": drop, "drop_above": drop_above, "select": select, "between": between or None, "sample": sample,
        "ids": tuple(ids) or None, "weights": weights or None, "annotate": annotate or None,
    }  # fmt: skip
    asked = [name for name in RULES if given[name] is not None]
    if len(asked) != 1:
        known = ", ".join(_option(name) for name in RULES)
        problem = "says nothing of which rows stay" if not asked else f"has {' and '.join(map(_option, asked))}"
        raise RequestError("curate", None, problem, f"want one of {known}")
    name = asked[0]
    if because is None and name in _EITHER:
        because = "harmful"
    because = side_of(because)
    if across not in ACROSS:
        raise RequestError("--across", across, "no such way", meant(across, ACROSS))
    if across == "votes" and name not in ("drop", "select"):
        raise RequestError("--across", across, "needs a number of rows that each query names", "use --drop or --select")
    if per is not None and name != "select":
        raise RequestError("--per", per, f"does not go with {_option(name)}", "use it with --select")
    if near_duplicates and name not in ("drop", "drop_above", "ids"):
        raise RequestError("--near-duplicates", None, f"does not go with {_option(name)}", "use it with --drop")
    if not temperature > 0 or not math.isfinite(temperature):
        raise RequestError("--temperature", temperature, "want a number above 0")
    if without_score not in (None, "keep", "drop"):
        raise RequestError("--without-score", without_score, "want keep or drop")
    auto = name == "drop" and drop == AUTO
    if auto and across != "mean":
        raise RequestError("--across", across, "does not go with --drop auto", "name a number of rows")
    counts = name in ("drop", "select", "sample") and not auto
    count, shared = _count(given[name], _option(name)) if counts else (0.0, False)
    return Rule(
        name, because, across, count, shared, auto,  # type: ignore[arg-type]
        above=_finite(drop_above, "--drop-above"), band=_band(between), per=per, temperature=temperature, seed=seed,
        ids=tuple(ids), siblings=near_duplicates,
        without_score=without_score or ("drop" if name in _SELECTING else "keep"),  # type: ignore[arg-type]
    )  # fmt: skip


def side_of(because: str | None) -> Because:
    """The side that is to blame. Raises `RequestError` where none is named, or no such one."""
    if because is None:
        raise RequestError("--because", None, _EXPLAINED, "say --because helpful or --because harmful")
    if because not in SIGNS:
        raise RequestError("--because", because, "no such side", meant(because, SIGNS))
    return "helpful" if because == "helpful" else "harmful"


def decide(rule: Rule, scores: Scores, groups: Column | None = None) -> Decided:
    """What becomes of every row. `groups` has the number of each row's value in the column that is balanced."""
    how = rule.rows(scores.scored, scores.rows) if rule.name in ("drop", "select", "sample") else None
    score = scores.across(rule.across, how)
    if rule.whole:
        return Decided(np.zeros(scores.rows, np.uint8), score)
    fate = np.full(scores.rows, STAYS, np.uint8)
    if rule.name == "ids":
        fate[_named(rule.ids, scores)] = GOES
    elif rule.name == "select" and rule.per == "query" and how is not None:
        fate[:] = GOES
        fate[_in_turns(scores, how)] = STAYS
    else:
        for first, goes in _going(rule, score, scores.scored, how or 0, groups):
            fate[first : first + len(goes)][goes] = GOES
    for first, values in score.blocks():
        missing = np.isnan(values)
        if rule.name != "ids" or rule.without_score == "drop":
            fate[first : first + len(values)][missing] = UNKNOWN if rule.without_score == "drop" else STAYS
    return Decided(fate, score)


def weight_of(rule: Rule, score: np.ndarray, rms: float) -> np.ndarray:
    """2 / (1 + exp(score / (temperature · RMS))): 1 for a row without influence, 0 for the worst, at most 2.

    1 for a row without a score.
    """
    z = np.nan_to_num(score) / (rms * rule.temperature)
    return 1 - np.tanh(z / 2)


def rms_of(score: Column) -> float:
    """The root mean square of the rows' scores; 1 where all are 0."""
    total, count = 0.0, 0
    for _, values in score.blocks():
        fine = values[~np.isnan(values)]
        total, count = total + float(fine @ fine), count + len(fine)
    return math.sqrt(total / count) or 1.0 if count else 1.0


def _going(
    rule: Rule, score: Column, scored: int, count: int, groups: Column | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Which rows go, block after block."""
    if rule.name == "drop_above":
        yield from ((first, values > rule.above) for first, values in score.blocks())
    elif rule.name == "drop":
        yield from _cut(score, count)
    elif rule.name == "select":
        wanted = None if groups is None else _balanced(score, groups, count)
        yield from ((first, ~stays) for first, stays in _cut(score, count, -1, groups, wanted))
    elif rule.name == "sample":
        yield from ((first, ~stays) for first, stays in _cut(_drawn(rule, score), count))
    elif rule.name == "between":
        low, high = (round(share * scored) for share in rule.band)
        for (first, under), (_, upto) in zip(_cut(score, low, -1), _cut(score, high, -1), strict=True):
            yield first, ~(upto & ~under)


def _cut(
    score: Column, count: int, sign: int = 1, groups: Column | None = None, wanted: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Whether each row is among the first `count`, the largest (or with −1 the smallest) score first."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first, values in score.blocks():
            of = np.zeros(len(values), np.int64) if groups is None else groups.read(first, first + len(values))
            yield of, sign * values

    before = cuts(blocks, np.array([count]) if wanted is None else wanted).before()
    first = 0
    for of, values in blocks():
        yield first, before(of, values)
        first += len(values)


def _named(ids: Sequence[str], scores: Scores) -> np.ndarray:
    """The rows with these ids; what is nobody's id is a row's number. Raises `RequestError` where it is neither."""
    left, found = dict.fromkeys(ids), list[int]()
    wanted = set(ids)
    first = 0
    for table in in_order(scores.runs[0], ["id"], BLOCK):
        for row, name in enumerate(table["id"].to_pylist(), first):
            if name in wanted:
                found.append(row)
                left.pop(name, None)
        first += len(table)
    for name in left:
        if not (name.isascii() and name.isdigit() and int(name) < scores.rows):
            raise RequestError("--ids", name, "no row has this id", f"or a number from 0 to {scores.rows - 1}")
        found.append(int(name))
    return np.array(found, np.int64)


def _balanced(score: Column, groups: Column, count: int) -> np.ndarray:
    """How many rows each value of a column may have, as equal as there are rows for it, `count` in all."""
    there = np.zeros(0, np.int64)
    for first, values in score.blocks():
        more = np.bincount(groups.read(first, first + len(values))[~np.isnan(values)])
        there = np.pad(there, (0, max(0, len(more) - len(there))))
        there[: len(more)] += more
    wanted, left = np.zeros_like(there), count
    while left and (room := np.flatnonzero(there > wanted)).size:
        more = np.minimum(there[room] - wanted[room], max(1, left // len(room)))
        if left < len(room):
            more[left:] = 0
        wanted[room] += more
        left -= int(more.sum())
    return wanted


def _in_turns(scores: Scores, count: int) -> np.ndarray:
    """The rows that the queries take in turns, each the one that it blames least of those that nobody has taken."""
    depth = min(scores.scored, 2 * -(-count // len(scores.queries)) + 16)
    while True:
        orders = _least(scores, depth)
        taken: dict[int, None] = {}
        places = [0] * len(orders)
        short = False
        while len(taken) < count and not short:
            for query, order in enumerate(orders):
                while places[query] < len(order) and int(order[places[query]]) in taken:
                    places[query] += 1
                if places[query] == len(order):
                    short = depth < scores.scored
                    break
                taken[int(order[places[query]])] = None
                if len(taken) == count:
                    break
        if not short:
            return np.fromiter(taken, np.int64, len(taken))
        depth = min(scores.scored, 2 * depth)


def _least(scores: Scores, depth: int) -> list[np.ndarray]:
    """The `depth` rows that each query blames least, the least first, then by row."""
    values = np.zeros((0, len(scores.queries)))
    rows = np.zeros((0, len(scores.queries)), np.int64)
    for portion in scores.portions():
        blame = np.nan_to_num(scores.blame(portion.influence), nan=np.inf)
        values = np.concatenate([values, blame])
        numbers = np.arange(portion.first, portion.first + len(portion))
        rows = np.concatenate([rows, np.tile(numbers[:, None], (1, len(scores.queries)))])
        order = np.lexsort((rows, values), axis=0)[:depth]
        values, rows = np.take_along_axis(values, order, 0), np.take_along_axis(rows, order, 0)
    return [rows[np.isfinite(values[:, query]), query] for query in range(len(scores.queries))]


def _drawn(rule: Rule, score: Column) -> Column:
    """Keys of which the largest `count` are a sample without replacement, each row by its weight (Gumbel's trick)."""
    draw, rms, keys = np.random.default_rng(rule.seed), rms_of(score), Column(score.rows)
    for first, values in score.blocks():
        gumbel = -np.log(-np.log1p(-draw.random(len(values))))
        with np.errstate(invalid="ignore"):  # a row without a score has no key either
            keys.put(first, -np.logaddexp(0, values / (rms * rule.temperature)) + gumbel)
    return keys


def _count(value: object, option: str) -> tuple[float, bool]:
    """`1%` or 0.01 as a share, 100 as a number of rows. Raises `RequestError` for what is neither."""
    text = str(value).strip()
    number, sign, rest = text.partition("%")
    try:
        found = float(number) / (100 if sign else 1)
    except ValueError:
        found = -1.0
    shared = bool(sign) or 0 < found < 1
    if rest or not math.isfinite(found) or found <= 0 or (shared and found >= 1) or (not shared and found % 1):
        raise RequestError(option, value, "is no number of rows", "write 100, or a share as in 1%")
    return found, shared


def _finite(value: float | None, option: str) -> float:
    if value is not None and not math.isfinite(value):
        raise RequestError(option, value, "want a number, in root mean squares")
    return value or 0.0


def _band(between: Sequence[str] | None) -> tuple[float, float]:
    if not between:
        return 0.0, 1.0
    try:
        low, high = (float(str(one).removeprefix("q")) / 100 for one in between)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        text = " ".join(map(str, between))
        raise RequestError("--between", text, "is no band", "an example is --between q30 q70, the middle of the rows")
    return low, high


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
