"""What the rows that a report lists can be told apart by: the label given, and the column that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from datainf_ray.common.words import printable

_MOST = 100  # values that can be chosen: those of the most rows
_NAME = 60  # characters of a value
_NULL = "(null)"


@dataclass(frozen=True)
class Choice:
    """A value, as it is shown, and how many of the rows have it; the page knows it by its number."""

    number: int
    text: str
    rows: int


@dataclass(frozen=True)
class Choices:
    """The values of some rows, and which of them each row has."""

    name: str
    values: list[Choice]
    more: int  #: values that cannot be chosen, because there are too many
    _numbers: Mapping[int, int]
    _texts: Mapping[int, str]

    def of(self, row: int) -> int | None:
        """The number of a row's value; None where it cannot be chosen, or there is none."""
        return self._numbers.get(row)

    def text(self, row: int) -> str | None:
        """A row's value as it is shown; None where nothing is known of the row."""
        return self._texts.get(row)


def choices(name: str, values: Mapping[int, str | None], rows: Iterable[int]) -> Choices | None:
    """The values of `rows` by row; None where there are fewer than two to choose from."""
    there = {row: values[row] for row in rows if row in values}
    counts = Counter(there.values())
    if len(counts) < 2:
        return None
    ordered = sorted(counts, key=lambda value: (-counts[value], value is None, value or ""))
    numbers = {value: number for number, value in enumerate(ordered[:_MOST])}
    texts = {value: _NULL if value is None else printable(value, _NAME) for value in ordered}
    return Choices(
        name,
        [Choice(number, texts[value], counts[value]) for value, number in numbers.items()],
        len(ordered) - len(numbers),
        {row: numbers[value] for row, value in there.items() if value in numbers},
        {row: texts[value] for row, value in there.items()},
    )
