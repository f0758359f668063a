"""The labels that rows were given, beside those that the model predicts for them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.runs.texts import ROW, said_by


@dataclass(frozen=True)
class Labels:
    """Of some rows, by number, in the same words; those that are not known are not there."""

    given: Mapping[int, str]
    predicted: Mapping[int, str]

    @functools.cached_property
    def numbers(self) -> bool:
        """Whether labels are the numbers of a regression: all have a point, and the model predicts others than those.

        A class has a name or a whole number, and one that is predicted is among those that rows are given.
        """
        given, predicted = set(self.given.values()), set(self.predicted.values())
        return bool(given) and all(map(_has_point, given | predicted)) and not predicted <= given

    def differs(self, row: int) -> bool | None:
        """Whether the model predicts another class than a row was given; None where that is not known, or no class."""
        given, predicted = self.given.get(row), self.predicted.get(row)
        return None if given is None or predicted is None or self.numbers else given != predicted

    def of(self, row: int) -> dict[str, Any] | None:
        """A row's `given` and `predicted` label, and whether one `differs` from the other; None where none is known."""
        given, predicted = self.given.get(row), self.predicted.get(row)
        if given is None and predicted is None:
            return None
        return {"given": given, "predicted": predicted, "differs": self.differs(row)}


def given_in(texts: pa.Table, rows: Collection[int]) -> dict[int, str]:
    """The labels of some rows, of a texts.parquet."""
    some = texts.filter(pc.is_in(texts["number"], pa.array(sorted(rows), pa.int64())))
    said = said_by(some, ROW)
    labels = ((row, next((one.text for one in said[row] if one.role == "label"), None)) for row in said)
    return {row: label for row, label in labels if label is not None}


def predicted_in(parts: Iterable[pa.Table], rows: Collection[int]) -> dict[int, str]:
    """What the model predicts for some rows, of parts of examples/, in order, with columns row and predicted."""
    wanted, left, found = pa.array(sorted(rows), pa.int64()), len(rows), dict[int, str]()
    for part in parts:
        there = part.filter(pc.is_in(part["row"], wanted))
        left -= len(there)
        there = there.filter(pc.is_valid(there["predicted"]))
        found |= dict(zip(there["row"].to_pylist(), there["predicted"].to_pylist(), strict=True))
        if not left:
            break
    return found


def _has_point(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "." in text
