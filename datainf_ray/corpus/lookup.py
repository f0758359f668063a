"""What stands in a row where a column is asked for: a column's value, one within it, a folder's, or a Jinja text.

A name means, in this order, the column of that name; a value within a column, as in `data.prompt`; and what the file's
folders say, as in lang=en/part-0.parquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.templates import is_template, template

Path = tuple[str, ...]  #: a column's name, and keys into its values

DEEPEST, _MOST = 8, 1000  # keys into a value, and such paths of one file, that are known by name


class Lookup:
    """Where the columns that are asked for stand in the rows of one file; `asked` has their names, and Jinja texts."""

    def __init__(self, file: SourceFile, asked: Iterable[str]) -> None:
        self._texts = {text: template(text) for text in asked if is_template(text)}
        names = [name for text in asked for name in names_in(text)]
        within = _within(file)
        self._paths = {name: path for name in names if (path := _path(name, file, within)) is not None}
        self._folders = dict(file.partition)

    @property
    def paths(self) -> list[Path]:
        """What has to be read of the file."""
        return list(dict.fromkeys(self._paths.values()))

    def find(self, column: str, values: dict[str, Any]) -> Any:
        """The value of a column that was asked for, in a row of the file with these values.

        A Jinja text over nothing but nulls is null. Raises KeyError with the name of what the row does not
        have, and `TemplateError` where it cannot be put into the text.
        """
        made = self._texts.get(column)
        if made is None:
            return self._find(column, values)
        given = {}
        for name in made.names:
            try:
                given[name] = self._find(name, values)
            except KeyError:  # a JSON line leaves out what it does not have
                continue
        if made.names and not given:
            raise KeyError(", ".join(made.names))
        if made.names and all(value is None for value in given.values()):
            return None
        return made.render(given)

    def _find(self, name: str, values: dict[str, Any]) -> Any:
        path = self._paths.get(name)
        if path is None:
            return self._folders[name]
        value: Any = values
        for key in path:
            if value is None:
                return None
            if not isinstance(value, dict) or key not in value:
                raise KeyError(name)
            value = value[key]
        return value


def names_in(column: str) -> tuple[str, ...]:
    """The names of columns that are needed for a column that is asked for: those of a Jinja text, or itself."""
    return template(column).names if is_template(column) else (column,)


def has_column(name: str, file: SourceFile) -> bool:
    """Whether the file's rows have something of that name."""
    return name in file.columns or name in _within(file) or name in dict(file.partition)


def columns_of(file: SourceFile) -> tuple[str, ...]:
    """The names of a file's columns, those that its folders say, and those within others."""
    return tuple(dict.fromkeys((*file.columns, *(name for name, _ in file.partition), *_within(file))))


def paths_within(values: Mapping[str, Any], prefix: Path = ()) -> Iterator[Path]:
    """The paths to what is nested in the values of a row."""
    for key, value in values.items():
        if prefix:
            yield (*prefix, key)
        if isinstance(value, dict) and len(prefix) < DEEPEST:
            yield from paths_within(value, (*prefix, key))


def add_paths(paths: dict[Path, None], more: Iterable[Path]) -> None:
    """Put more paths among those that are known, as long as they are not too many."""
    for path in more:
        if len(paths) >= _MOST:
            return
        paths[path] = None


def _within(file: SourceFile) -> dict[str, Path]:
    return {".".join(path): path for path in reversed(file.nested)}


def _path(name: str, file: SourceFile, within: Mapping[str, Path]) -> Path | None:
    return (name,) if name in file.columns else within.get(name)
