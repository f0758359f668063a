"""Which columns mean what: the combinations of roles that each task can be trained on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.files import SourceFile


@dataclass(frozen=True)
class Combination:
    """A kind of row: the roles it must have, and those that it may have."""

    kind: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join(self.required) + "".join(f"(+{role})" for role in self.optional)


#: What a row can be, per task, in order of preference.
COMBINATIONS: dict[str, tuple[Combination, ...]] = {
    "causal-lm": (
        Combination("messages", ("messages",)),
        Combination("prompt-completion", ("prompt", "completion")),
        Combination("tokens", ("input_ids",), ("labels",)),
        Combination("text", ("text",)),
    ),
    "sequence-classification": (
        Combination("classification", ("text", "label"), ("text_pair",)),
        Combination("tokens", ("input_ids", "label")),
    ),
}


def choose_columns(
    asked: Mapping[str, str], files: Sequence[SourceFile], task: str, key: str
) -> tuple[str, dict[str, str]]:
    """The kind of row, and role → column, for files that have rows.

    `asked` is the request's `columns`. Left empty, the columns that bear the roles' own names are taken; required
    roles that it leaves out are, too. A label may be called `label` or `labels`. Raises `RequestError`.
    """
    combinations = COMBINATIONS.get(task)
    if combinations is None:
        raise RequestError(f"model.task: {task!r} has no rows of text; use {' or '.join(COMBINATIONS)}")
    asked = dict(asked)
    alias = task == "sequence-classification"
    if alias and "labels" in asked:
        asked["label"] = asked.pop("labels")
    for role, column in asked.items():
        require_column(column, files, f"{key}.columns.{role}")
    common = set(files[0].columns).intersection(*(file.columns for file in files))
    known = {name: name for name in common}
    if alias and "label" not in known and "labels" in known:
        known["label"] = "labels"
    for combination in combinations:
        roles = (*combination.required, *combination.optional)
        if not set(asked) <= set(roles):
            continue
        if not all(role in asked or role in known for role in combination.required):
            continue
        taken = {role: asked.get(role, known.get(role, "")) for role in combination.required}
        for role in combination.optional:  # an explicit request says all that it wants
            column = asked.get(role, None if asked else known.get(role))
            if column is not None:
                taken[role] = column
        return combination.kind, taken
    raise RequestError(_no_combination(asked, files, common, combinations, task, key))


def require_column(column: str, files: Sequence[SourceFile], key: str) -> None:
    """Raises `RequestError` naming `key` and the first file that does not have the column."""
    for file in files:
        if column not in file.columns:
            close = difflib.get_close_matches(column, file.columns, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise RequestError(f"{key}: no column {column!r} in {file.path}, which has {_listed(file.columns)}{meant}")


def _no_combination(
    asked: Mapping[str, str],
    files: Sequence[SourceFile],
    common: set[str],
    combinations: Sequence[Combination],
    task: str,
    key: str,
) -> str:
    takes = f"task {task} takes {' or '.join(map(str, combinations))}"
    if asked:
        return f"{key}.columns: {', '.join(asked)}: {takes}"
    for combination in combinations:
        if any(set(combination.required) <= set(file.columns) for file in files):
            file, role = next((f, r) for f in files for r in combination.required if r not in f.columns)
            return f"{key}.path: {file.path} has no column {role!r}, which other files of the corpus have"
    there = _listed(sorted(common or files[0].columns))
    return f"{key}.columns: none of {there} is what the task needs; {takes}: map them, as in {{text: body}}"


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown or "none"
