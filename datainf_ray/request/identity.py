"""What makes a run this run: the settings that matter, and what its model holds.

A run is known by content as cheaply as that can be had, so one that was moved is still the same, and one whose model or
settings were changed is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from datainf_ray.common.storage import Options
from datainf_ray.config import RunConfig
from datainf_ray.model.files import ADAPTER_PICKLE, ADAPTER_WEIGHTS, is_remote, listing_digest, local_folder

_HASHED = 64 * 2**20  # bytes; files of a model up to this size are known by all of their content
_PIECES, _PIECE = 256, 64 * 2**10  # larger ones by so many pieces of so many bytes, and their size


def settings(config: RunConfig) -> dict[str, Any]:
    """The configuration as far as a run is known by it: flat, and without what is as it is by default."""
    flat = {}
    for name, value in config.model_dump(mode="json").items():
        flat.update({f"{name}.{k}": leaf for k, leaf in value.items()} if _keys(name) else {name: value})
    return _telling(flat)


def _telling(flat: dict[str, Any]) -> dict[str, Any]:
    """Those settings that tell a run from others, by what this version knows of their keys."""
    return {key: value for key, value in flat.items() if not _is_incidental(key) and value != _default(key)}


def _is_incidental(key: str) -> bool:
    """Whether a run is another's equal whatever the key's value, or is known by the content of what it names."""
    marks = getattr(_field(key), "json_schema_extra", None) or {}
    return "incidental" in marks or "place" in marks


def _default(key: str) -> Any:
    """A key's default; None where it has none, or is another version's."""
    field = _field(key)
    return None if field is None or field.is_required() else field.get_default(call_default_factory=True)


def _field(key: str) -> FieldInfo | None:
    part, _, name = key.rpartition(".")
    return (_keys(part) if part else RunConfig.model_fields).get(name)


def _keys(part: str) -> dict[str, FieldInfo]:
    """The keys of a part of the configuration; none where `part` is a key itself."""
    kind = getattr(RunConfig.model_fields.get(part), "annotation", None)
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def base_digest(base: str, options: Options | None = None) -> str:
    """The base's digest. One in a store is known by what the store says of it: its weights are not on the driver."""
    if is_remote(base):
        return listing_digest(base, "model.base", options)
    return folder_digest(local_folder(base, "model.base"))


def adapter_digest(folder: str | None) -> str | None:
    """The digest of an adapter's files; None where there is no adapter."""
    if folder is None:
        return None
    if Path(folder).is_file():
        return _digest_of_files([Path(folder)], Path(folder).parent)
    pickled = () if (Path(folder) / ADAPTER_WEIGHTS).is_file() else (ADAPTER_PICKLE,)
    return folder_digest(folder, pickled)


def folder_digest(folder: str, also: tuple[str, ...] = ()) -> str:
    """A digest of a model's files, `also` those: their names, sizes and content, or samples of it where it is large.

    Samples are enough to tell models apart that were trained differently: hardly a weight stays the same.
    """
    root = Path(folder)
    if not root.is_dir():
        return folder  # a hub id
    return _digest_of_files(sorted(p for p in root.rglob("*") if p.is_file() and _counts(p, also)), root)


def _digest_of_files(paths: Sequence[Path], root: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        total.update(f"{path.relative_to(root)} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _HASHED:
                total.update(file.read())
            else:
                for piece in range(_PIECES):
                    file.seek(piece * (size - _PIECE) // (_PIECES - 1))
                    total.update(file.read(_PIECE))
    return total.hexdigest()


def _counts(path: Path, also: tuple[str, ...]) -> bool:
    return path.suffix in (".json", ".safetensors") or path.name in also


def text_digest(text: str) -> str:
    """The digest of a text that a setting has."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def changed_settings(there: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The settings in which two identities differ, in order: a key and its two values as JSON.

    They may be another version's: with all their defaults, or without a key that has come since.
    """
    old, new = (_telling(identity.get("settings", {})) for identity in (there, here))
    for key in sorted(old.keys() | new.keys()):
        was, is_now = (json.dumps(values.get(key, _default(key))) for values in (old, new))
        if was != is_now:
            yield key, was, is_now


def difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """The first thing in which two identities differ, in words; None where they are the same run's."""
    if "runs" in there:
        return "it combines several runs"
    for key, was, is_now in changed_settings(there, here):
        return f"{key} is {was} there and {is_now} here"
    for part in ("adapter", "base", "train", "queries"):
        if there.get(part) != here[part]:
            what = "files" if part in ("adapter", "base") else "rows"
            return f"the {part}{' model' if part == 'base' else ''}'s {what} are others"
    if there.get("encoding", 1) != here["encoding"]:
        return "an earlier version made it, and other tokens of the same rows"
    if there.get("task") != here.get("task"):
        return "the task's code is another"
    if there.get("chat_template") != here.get("chat_template"):
        return "model.chat_template holds another template"
    return None
