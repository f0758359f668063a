"""Which columns mean what: the roles that columns have, and the combinations of them that a task takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import close, escaped, meant
from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.lookup import columns_of, has_column, names_in
from datainf_ray.corpus.mappings import mapping_of
from datainf_ray.corpus.templates import TemplateError, is_template

#: What a column's values are in each role: text, list or any. A task may have more roles; see `Combination.types`.
ROLES = {
    "text": "text",
    "text_pair": "text",
    "prompt": "text",
    "completion": "text",
    "messages": "list",
    "tools": "any",
    "system": "text",
    "chat_template_kwargs": "any",
    "input_ids": "list",
    "labels": "list",
    "attention_mask": "list",
    "token_type_ids": "list",
    "position_ids": "list",
    "seq_lengths": "list",
    "completion_mask": "list",
    "assistant_masks": "list",
    "label": "any",
}
#: What a missing value stands for, in the roles where it is none that is wrong.
MISSING = {"text_pair": ""}


#: Columns that trainers read by these names whatever the others are called: what a talk's template is given.
TRAINERS_OWN = ("tools", "chat_template_kwargs")


#: What pictures and their prompts are called in folders of `datasets`, and by those who write captions.
PICTURES_OWN = {"image": ("file_name", "jpg", "png", "webp"), "prompt": ("text", "caption", "txt")}

#: What a corpus usually is for that has columns of these roles; for messages. The first that is there counts.
USUAL = (
    (("text", "label"), "sequence-classification"),
    (("messages",), "causal-lm"),
    (("conversations",), "causal-lm"),
    (("prompt", "completion"), "causal-lm"),
    (("input_ids",), "causal-lm"),
    (("text",), "causal-lm"),
    (("prompt", "image"), "text-to-image"),
)


#: Roles that a Jinja text over several columns can fill, besides those of text that a task has of its own.
TEMPLATED = ("text", "text_pair", "prompt", "completion", "span")

#: The type of a role that only queries have, and only where it is asked for: a text, or [start, end] in characters.
SPAN = "span"


@dataclass(frozen=True)
class Combination:
    """A kind of row: the roles it must have, and those that it may have.

    A role that is not in `ROLES` takes values of any type unless `types` says "text", "list", "span" or "picture"; a
    picture's value is its bytes, wherever they lie (see `corpus.pictures`).
    """

    kind: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    def type_of(self, role: str) -> str:
        """What a value must be in this role: text, list, span, picture or any."""
        return self.types.get(role) or ROLES.get(role, "any")

    def __str__(self) -> str:
        return "+".join(self.required)


class Takes(Protocol):
    """What is read of a task here; see `tasks.task`."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> tuple[Combination, ...]:
        """What a row can be, in order of preference."""


def choose_columns(
    asked: Mapping[str, str], files: Sequence[SourceFile], task: Takes, key: str
) -> tuple[Combination, dict[str, str]]:
    """The kind of row, and role → column, for files that have rows.

    `asked` is the request's `columns`: names of columns, of what lies within them or in the names of folders, or Jinja
    texts. Left empty, the columns that bear the roles' own names are taken; required roles that it leaves out are, too.
    Where the task takes a label it may be called `label` or `labels`, and messages may be called `conversations`;
    pictures and their prompts may be called as `PICTURES_OWN` says. Raises `RequestError`.
    """
    asked = dict(asked)
    roles = _roles(task)
    alias = "label" in roles and "labels" not in roles
    if alias and "labels" in asked:
        asked["label"] = asked.pop("labels")
    spans = {role for kind in task.kinds for role in kind.roles if kind.type_of(role) == SPAN}
    _require_spans_fit(spans & set(asked), asked, task, key)
    for role, column in asked.items():
        if role not in roles:
            other = next((name for those, name in USUAL if role in those and name != task.name), None)
            problem = f"task {task.name} has no such role" + (f", model.task {other} has" if other else "")
            raise RequestError(f"{key}.columns", role, problem, meant(role, roles))
        _require(role, column, files, task, f"{key}.columns.{role}")
    common = set(files[0].columns).intersection(*(file.columns for file in files))
    known = {name: name for name in common - spans}  # a column that is called so by chance changes nothing
    if alias and "label" not in known and "labels" in known:
        known["label"] = "labels"
    if "messages" in roles and "messages" not in known and "conversations" in known:
        known["messages"] = "conversations"  # as ShareGPT calls them
    elif "messages" in roles:
        known.pop("system", None)  # a column beside conversations; what else is called so is no message
    for role, others in PICTURES_OWN.items() if "image" in roles else ():
        found = next((name for name in others if name in known), None)
        if role not in known and found is not None:
            known[role] = found
    for combination in task.kinds:
        if not set(asked) <= set(combination.roles):
            continue
        if not all(role in asked or role in known for role in combination.required):
            continue
        taken = {role: asked.get(role, known.get(role, "")) for role in combination.required}
        for role in combination.optional:  # an explicit request says all that it wants, but for what trainers look for
            found = asked.get(role, None if asked and role not in TRAINERS_OWN else known.get(role))
            if found is not None:
                taken[role] = found
        if not asked and "label" in common and task.name in dict(USUAL).values():
            _require_no_label(combination, task, key)
        return combination, taken
    raise _no_combination(asked, files, common, task, key)


def require_column(column: str, files: Sequence[SourceFile], key: str) -> None:
    """Raises `RequestError` naming `key` and the first file that does not have the column."""
    for file in files:
        if not has_column(column, file):
            there = columns_of(file)
            problem = f"no such column in {file.path}, which has {_listed(there)}"
            if file.hint is not None:
                problem, remedy = f"{problem}: {file.hint[0]}", file.hint[1]
                raise RequestError(key, column, problem, remedy)
            raise RequestError(key, column, problem, close(column, there))


def _require(role: str, column: str, files: Sequence[SourceFile], task: Takes, key: str) -> None:
    """Raises `RequestError` where a role cannot be had from a column, or from the columns of a Jinja text."""
    if is_template(column):
        texts = [r for combination in task.kinds for r in combination.roles if combination.type_of(r) == "text"]
        if role not in TEMPLATED and role not in texts:
            known = ", ".join(dict.fromkeys(r for r in (*TEMPLATED, *texts) if r in _roles(task)))
            raise RequestError(key, column, f"{role} takes no Jinja text", f"those that do are {known or 'none'}")
    try:
        names = names_in(column)
    except TemplateError as error:
        raise RequestError(key, column, str(error)) from None
    for name in names:
        require_column(name, files, key)


def _require_spans_fit(spans: Collection[str], asked: Mapping[str, str], task: Takes, key: str) -> None:
    """Raises `RequestError` where a span is asked for of training rows, or of rows that have no text."""
    for role in spans:
        if key == "train":
            problem = "is for queries alone: a training row's influence is that of all the tokens it was trained on"
            raise RequestError(f"{key}.columns.{role}", asked[role], problem, "leave it out")
        taken = [kind for kind in task.kinds if role in kind.roles]
        others = {other for kind in task.kinds for other in kind.required if kind not in taken}
        odd = next((other for other in asked if other in others - {o for kind in taken for o in kind.roles}), None)
        if odd is not None:
            problem = f"rows of {odd} have no text to find it in"
            remedy = f"use it with {' or '.join(map(str, taken))}, or say by labels of -100 what is no target"
            raise RequestError(f"{key}.columns.{role}", asked[role], problem, remedy)


def _require_no_label(combination: Combination, task: Takes, key: str) -> None:
    """Raises `RequestError` where rows have a label that the task would not read, though it says what the row is."""
    if combination.required == ("text",):
        there, remedy = "text and label", "set model.task: sequence-classification, or "
    elif combination.required == ("prompt", "completion"):
        there, remedy = "prompt, completion and label, as KTO has them", ""
    else:
        return
    mapping = ", ".join(f"{role}: {role}" for role in combination.required)
    remedy += f"say that it is so by columns: {{{mapping}}}"
    raise RequestError(f"{key}.columns", None, f"there are {there}, and task {task.name} would not read label", remedy)


def _roles(task: Takes) -> dict[str, None]:
    return dict.fromkeys(role for combination in task.kinds for role in combination.roles)


def _no_combination(
    asked: Mapping[str, str],
    files: Sequence[SourceFile],
    common: set[str],
    task: Takes,
    key: str,
) -> RequestError:
    takes = f"task {task.name} takes {' or '.join(map(str, task.kinds))}"
    if asked:
        return RequestError(f"{key}.columns", ", ".join(asked), takes)
    for combination in task.kinds:
        if any(set(combination.required) <= set(file.columns) for file in files):
            file, role = next((f, r) for f in files for r in combination.required if r not in f.columns)
            return RequestError(
                f"{key}.path", file.path, f"has no column {role!r}, which other files of the corpus have"
            )
    there = _listed(sorted(common or files[0].columns))
    named = common | ({"label"} if "labels" in common else set())
    other = next((name for those, name in USUAL if set(those) <= named), task.name)
    problem = f"none of {there} is what the task needs"
    odd = next((file for file in files if file.hint is not None), None)
    if odd is not None and odd.hint is not None:
        return RequestError(f"{key}.path", odd.path, odd.hint[0], odd.hint[1])
    if other != task.name:
        problem += f", but they are what model.task {other} takes"
    within = [name for name in columns_of(files[0]) if name not in common]
    mapping = mapping_of([*sorted(common), *within], _roles(task))
    if mapping is not None and other == task.name:
        return RequestError(f"{key}.columns", None, problem, f"{takes}: map them by {mapping}")
    roles = ", ".join(f"{role}: COLUMN" for role in task.kinds[0].required)
    example = "text: body" if "text" in _roles(task) else roles
    return RequestError(f"{key}.columns", None, problem, f"{takes}: map them, as in {{{example}}}")


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(escaped(column, 60) for column in columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown or "none"
