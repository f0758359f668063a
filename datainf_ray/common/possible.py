"""What a field of a pydantic model can hold, in words: "a whole number of at least 1, or auto"."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = ("gt", "ge", "lt", "le")


def kinds(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, one by one, without what `Annotated` adds."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from kinds(one)
    elif origin is Annotated:
        yield from kinds(get_args(annotation)[0])
    else:
        yield type(None) if annotation is None else annotation


def possible(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What `annotation`, with pydantic's constraints `metadata`, lets through, in words."""
    words = sorted(dict.fromkeys(_words(annotation, metadata)), key=lambda word: (word == "null", " " not in word))
    if len(words) == 1:
        return words[0]
    comma = "," if any(" " in word for word in words) else ""
    return f"{', '.join(words[:-1])}{comma} or {words[-1]}"


def below(annotation: Any, place: str | int) -> Any:
    """The annotation of what lies at an index or key of a list or mapping; `Any` where there is none."""
    for kind in kinds(annotation):
        arguments = get_args(kind)
        if isinstance(place, int) and get_origin(kind) in (tuple, list) and arguments:
            return arguments[0]
        if get_origin(kind) is dict:
            return arguments[1]
    return Any


def _words(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for one in arguments:
            yield from _words(one, metadata)
    elif origin is Annotated:
        yield from _words(arguments[0], [*metadata, *_constraints(arguments[1:])])
    elif origin is Literal:
        yield from ("null" if value is None else str(value) for value in arguments)
    elif annotation in (None, type(None)):
        yield "null"
    elif annotation is bool:
        yield from ("true", "false")
    elif annotation in (int, float):
        yield _number("a whole number" if annotation is int else "a number", metadata)
    elif annotation is str:
        shortest = max((getattr(one, "min_length", None) or 0 for one in metadata), default=0)
        yield "a text that is not empty" if shortest else "a text"
    elif origin in (tuple, list):
        yield f"a list of {_plural(arguments[0])}"
    elif origin is dict:
        yield f"a mapping of {_plural(arguments[0])} to {_plural(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield f"a mapping of {', '.join(annotation.model_fields)}"
    else:
        yield "a value"


def _constraints(more: Sequence[Any]) -> list[Any]:
    return [inner for one in more for inner in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _number(noun: str, metadata: Sequence[Any]) -> str:
    bounds: Mapping[str, Any] = {
        name: value
        for name in _BOUNDS
        if (value := next((v for one in metadata if (v := getattr(one, name, None)) is not None), None)) is not None
    }
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in bounds.items()}
    if "ge" in shown and "le" in shown:
        return f"{noun} from {shown['ge']} to {shown['le']}"
    said = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    return " ".join([noun, " and ".join(f"{said[name]} {value}" for name, value in shown.items())]).strip()


def _plural(annotation: Any) -> str:
    kind = next(kinds(annotation))
    kind = get_origin(kind) or kind
    names = {str: "texts", int: "whole numbers", float: "numbers", dict: "mappings", list: "lists", tuple: "lists"}
    return names.get(kind, "values")
