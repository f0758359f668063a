"""What makes a run this run: the settings that matter, and what its model holds.

A run is known by content as cheaply as that can be had, so one that was moved is still the same, and one whose model or
settings were changed is not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from datainf_ray.common.storage import Options
from datainf_ray.config import RunConfig
from datainf_ray.model.files import is_remote, listing_digest, local_folder

_HASHED = 64 * 2**20  # bytes; files of a model up to this size are known by all of their content
_PIECES, _PIECE = 256, 64 * 2**10  # larger ones by so many pieces of so many bytes, and their size

#: What changes neither a result nor its meaning: where the work is done, where it is put and what is kept meanwhile.
_INCIDENTAL = {
    "output": ...,
    "gradients": ...,
    "cluster": {
        "address",
        "min_workers",
        "max_workers",
        "start_timeout",
        "checkpoint_seconds",
        "gpus_per_worker",
        "cpus_per_worker",
        "label_selector",
        "fallback_selector",
        "fallback_after",
    },
}
_PLACES = {("model", "base"), ("model", "adapter"), ("train", "path"), ("queries", "path")}


def settings(config: RunConfig) -> dict[str, Any]:
    """The configuration less what is incidental, flat, and less the places of what is known by its content."""
    tree = config.model_dump(mode="json")
    flat = {}
    for key, value in tree.items():
        incidental = _INCIDENTAL.get(key, set())
        if incidental is ...:
            continue
        if not isinstance(value, dict):
            flat[key] = value
            continue
        for inner, leaf in value.items():
            if inner not in incidental and (key, inner) not in _PLACES:
                flat[f"{key}.{inner}"] = leaf
    return flat


def base_digest(base: str, options: Options | None = None) -> str:
    """The base's digest. One in a store is known by what the store says of it: its weights are not on the driver."""
    if is_remote(base):
        return listing_digest(base, "model.base", options)
    return folder_digest(local_folder(base, "model.base"))


def folder_digest(folder: str) -> str:
    """A digest of a model's files: their names, their sizes and their content, or samples of it where it is large.

    Samples are enough to tell models apart that were trained differently: hardly a weight stays the same.
    """
    root = Path(folder)
    if not root.is_dir():
        return folder  # a hub id
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors")):
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


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first thing in which two identities differ, in words."""
    old, new = there.get("settings", {}), here["settings"]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key} is {json.dumps(old.get(key))} there and {json.dumps(new.get(key))} here"
    for part in ("adapter", "base", "train", "queries"):
        if there.get(part) != here[part]:
            what = "files" if part in ("adapter", "base") else "rows"
            return f"the {part}{' model' if part == 'base' else ''}'s {what} are others"
    return "it was made by another version"
