"""What is beside each row that the report lists: its near-duplicates, its value in the column, what it is chosen by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import DamagedError, one_line
from datainf_ray.runs.by import stored_values
from datainf_ray.runs.report.choices import Choices, choices
from datainf_ray.runs.report.listed import Listed
from datainf_ray.runs.report.near import Near, named, near_among
from datainf_ray.runs.results import Run
from datainf_ray.runs.texts import ROW


@dataclass
class Beside:
    """What is known of the rows on a page besides themselves."""

    label: Choices | None
    value: Choices | None  #: of the column `results.by`
    differ: int  #: rows of which the model predicts another label than they were given
    near: Near
    problem: str | None  #: why there is no `value`
    _ids: Mapping[int, str]
    _labels: Mapping[int, str]
    _shown: Collection[int]
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, run: Run, listed: Listed, texts: pa.Table, shown: Collection[int]) -> Beside:
        """Of a finished run, for the rows that are `shown`. `texts` are the run's."""
        column, values, problem = run.config["results"].get("by"), dict[int, str | None](), None
        try:
            values = stored_values(run) if column is not None else {}
        except DamagedError as error:
            problem = f"Rows cannot be chosen by it: {one_line(error)}."
        labels = listed.labels
        rows, of_rows = sorted(shown), texts.filter(pc.equal(texts["kind"], ROW))
        return cls(
            None if labels.numbers else choices("Label", labels.given, rows),
            choices(str(column), values, rows),
            sum(labels.differs(row) is True for row in rows),
            near_among(listed.rows, shown, run.config),
            problem,
            dict(zip(of_rows["number"].to_pylist(), of_rows["id"].to_pylist(), strict=True)),
            labels.given,
            shown,
        )

    def row(self, row: int) -> dict[str, Any]:
        """What the page says of a row; `anchor` is true in the first place that lists it, where links lead."""
        anchor = row not in self._seen
        self._seen.add(row)
        return {
            "anchor": anchor,
            "value": None if self.value is None else self.value.text(row),
            "label_number": None if self.label is None else self.label.of(row),
            "value_number": None if self.value is None else self.value.of(row),
            "near": named(self.near, row, self._ids, self._labels, self._shown),
        }
