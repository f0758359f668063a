"""A configuration from YAML, a dict or Python; and what is wrong with one, in a line."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from datainf_ray.common.errors import RequestError
from datainf_ray.common.plain_yaml import MOST_CHARACTERS, PlainYAMLError, read_yaml
from datainf_ray.common.possible import below, kinds, possible
from datainf_ray.common.redaction import keep_secret, names_secret
from datainf_ray.common.regular import local_path, regular, sought
from datainf_ray.common.storage import Options, reason, store_of
from datainf_ray.common.words import meant
from datainf_ray.config.keys import RunConfig

_SHOWN = 80  # characters of a wrong value


def load_config(source: str | Path | dict[str, Any] | RunConfig, **overrides: Any) -> RunConfig:
    """A `RunConfig` from a YAML file (a path or any fsspec URL), a dict or another `RunConfig`.

    `overrides` replace keys: nested dicts are merged, and a key may be dotted (`{"cluster.max_workers": 2}`).
    A file in a store is opened with the `storage_options` among them.
    Raises `RequestError` with one line that names the key, its value and what would be right.
    """
    file = None
    if isinstance(source, RunConfig):
        tree: Any = source.model_dump(exclude_unset=True)
        if source.storage_options:  # which are in no dump
            tree["storage_options"] = source.storage_options
    elif isinstance(source, dict):
        tree = source
    else:
        file = str(source)
        tree = _read(file, options_among(overrides))
    keep_secret({"storage_options": tree.get("storage_options")})
    for key, value in overrides.items():
        tree = _replaced(tree, key.split("."), value, key)
    keep_secret({"storage_options": tree.get("storage_options")})  # before any of it could be named in an error
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, file) from None


def options_among(overrides: dict[str, Any]) -> Options:
    """The `storage_options` among what replaces a configuration's keys; {} where those are none."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        if key.partition(".")[0] == "storage_options":
            tree = _replaced(tree, key.split("."), value, key)
    given = tree.get("storage_options")
    return given if isinstance(given, dict) and all(isinstance(of, dict) for of in given.values()) else {}


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"cluster.max_workers=2"` as `("cluster.max_workers", 2)`; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError("--set", text, "is not KEY=VALUE", "an example is --set cluster.max_workers=2")
    try:
        return key.strip(), read_yaml(value)
    except RequestError:
        raise
    except PlainYAMLError as error:
        secret = key.strip().startswith("storage_options")
        raise RequestError("--set", key if secret else text, error.told(secret), error.remedy) from None


def _read(file: str, options: Options) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    text = ""
    try:
        if (local := local_path(file)) is not None:
            regular(local, "config")
        fs, path = store_of(file, options)
        with fs.open(path, "rt", encoding="utf-8") as opened:
            text = opened.read(MOST_CHARACTERS + 1)
        tree = read_yaml(text)
    except RequestError:
        raise
    except PlainYAMLError as error:
        line = text.splitlines()[error.line - 1 :][:1] if error.line is not None else []
        secret = any(map(names_secret, line))
        place = "" if error.line is None else f"line {error.line}: "
        raise RequestError("config", file, f"{place}{error.told(secret)}", error.remedy) from None
    except FileNotFoundError:
        raise RequestError("config", file, "no such configuration file", sought(file)) from None
    except Exception as error:  # every storage library has its own classes; or it is not UTF-8
        raise RequestError("config", file, f"cannot be read: {reason(error)}") from None
    if not isinstance(tree, dict):
        raise RequestError("config", file, "a configuration is a mapping of keys such as model, train, queries, output")
    return tree


def _replaced(tree: dict[str, Any], path: list[str], value: Any, whole: str) -> dict[str, Any]:
    head, rest = path[0], path[1:]
    old = tree.get(head)
    if isinstance(old, BaseModel):
        old = old.model_dump(exclude_unset=True)
    if rest:
        if old is not None and not isinstance(old, dict):
            raise RequestError(whole, None, f"{head} is no mapping and has no key {rest[0]!r}")
        value = _replaced(old or {}, rest, value, whole)
    elif isinstance(value, dict) and isinstance(old, dict):
        for key, inner in value.items():
            old = _replaced(old, [str(key)], inner, f"{whole}.{key}")
        value = old
    return {**tree, head: value}


def _explained(error: ValidationError, file: str | None) -> RequestError:
    """The first thing that is wrong with a configuration, which was read from `file`."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])  # a misspelt key explains the rest
    key, _, _ = _place(first)
    others = len({_place(e)[0] for e in errors} - {key})
    more = f" (and {others} more)" if others and first["type"] != "missing" else ""
    if first["type"] == "extra_forbidden":
        above, _, last = key.rpartition(".")
        return RequestError(key, None, "unknown key", f"{meant(last, _part(above).model_fields)}{more}", file)
    if first["type"] == "missing":
        return RequestError(key, None, "missing", f"it must be given{more}", file)
    # of a list, the element that is wrong: each of the alternatives is told for itself
    first = max((e for e in errors if _place(e)[0] == key), key=lambda e: len(_place(e)[1]))
    key, within, field = _place(first)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):  # a check across keys names them itself
        return RequestError(cause.key, cause.value, cause.problem, cause.remedy, file)
    named = ".".join([key, *map(str, within)])
    value = None if not key or key.startswith("storage_options") else _shown(first["input"])
    if first["type"] == "value_error":
        return RequestError(named or "config", value, f"{cause}{more}", source=file)
    annotation, metadata = (RunConfig, ()) if field is None else (field.annotation, field.metadata)
    for step in within:
        annotation, metadata = below(annotation, step), ()
    return RequestError(named or "config", value, f"{possible(annotation, metadata)}{more}", source=file)


def _place(error: ErrorDetails) -> tuple[str, list[str | int], FieldInfo | None]:
    """The key that an error is about, the way from there into its value, and the key's field, if there is one."""
    part: type[BaseModel] = RunConfig
    names, rest, field = [], list(error["loc"]), None
    while rest:
        field = part.model_fields.get(str(rest[0]))
        names.append(str(rest.pop(0)))
        inner = None if field is None else _model(field)
        if inner is None:
            break
        part = inner
    alternatives = [] if field is None else [kind for kind in kinds(field.annotation) if kind is not type(None)]
    if rest and len(alternatives) > 1:  # pydantic names the alternative first
        rest = rest[1:]
    return ".".join(names), [step for step in rest if step != "[key]"], field


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """The part of the configuration that a field is, where it is one; it may be null."""
    some = [kind for kind in kinds(field.annotation) if kind is not type(None)]
    kind: Any = some[0] if len(some) == 1 else None
    if not isinstance(kind, type) or get_origin(kind) is not None:  # Python 3.10 takes dict[str, str] for a class
        return None
    return kind if issubclass(kind, BaseModel) else None


def _part(key: str) -> type[BaseModel]:
    """The part of the configuration at `key`; the whole at an empty one."""
    part: type[BaseModel] = RunConfig
    for name in filter(None, key.split(".")):
        field = part.model_fields.get(name)
        part = (field and _model(field)) or RunConfig
    return part


def _shown(value: Any) -> Any:
    """A value as an error shows it: as it would be written in YAML, and not at great length."""
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= _SHOWN else f"'{value[: _SHOWN - 1]}…'"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return value
    if isinstance(value, int):  # Python writes no number of more than 4,300 digits
        return value if abs(value) < 10**30 else "a number of more than 30 digits"
    return reprlib.repr(value)[:_SHOWN]
