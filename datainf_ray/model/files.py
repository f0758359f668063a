"""Where a model lies: a hub id, a local directory, or an fsspec URL that is fetched once per machine."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from fsspec import AbstractFileSystem

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.regular import regular, sought
from datainf_ray.common.storage import Options, open_store, persistently, reason
from datainf_ray.config import PICTURES, ModelConfig

ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"

ADAPTER_SETTINGS = "adapter_config.json"
_NAMED = 6  # folders that an error names

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def is_remote(reference: str) -> bool:
    """Whether a model is named by an fsspec URL that is not this machine's."""
    return "://" in reference and not reference.startswith("file://")


def local_folder(reference: str, key: str, weights: bool = True, options: Options | None = None) -> str:
    """The local directory of a model, or its hub id unchanged, where transformers fetches it itself.

    An fsspec URL is copied to the cache directory (`DATAINF_CACHE`, else ~/.cache/datainf_ray), whole or not at all;
    `weights=False` leaves the weight files out, which is enough to know the shapes. A store is opened with `options`.
    Raises `RequestError` naming `key`.
    """
    if is_remote(reference):
        return _fetched(reference, key, weights, options or {})
    path = Path(reference.removeprefix("file://")).expanduser()
    if path.is_dir():
        for file in itertools.chain(path.glob("*"), path.glob("*/*")):  # transformers opens none further down
            regular(str(file), key)
        return str(path)
    regular(str(path), key)
    looks_local = reference.startswith((".", "/", "~", "file://")) or (
        path.parent.is_dir() and path.parent != Path(".")
    )
    if path.exists() or looks_local or not _HUB_ID.match(reference):
        remedy = sought(reference) or "give a model's directory, hub id or URL"
        raise RequestError(key, reference, "no such directory", remedy)
    return reference


def adapter_folder(model: ModelConfig, options: Options | None = None) -> str | None:
    """The adapter's local directory, fetched where it is elsewhere; None where the model has none.

    Of text-to-image it may be a file, and its directory holds one or another kind of adapter.
    """
    if model.one_adapter is None:
        return None
    file = Path(model.one_adapter.removeprefix("file://")).expanduser()
    if model.task == PICTURES and file.suffix == ".safetensors" and file.is_file():
        regular(str(file), "model.adapter")
        return str(file)
    folder = local_folder(model.one_adapter, "model.adapter", options=options)
    if not Path(folder).is_dir():  # a hub id
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                folder, allow_patterns=["*.json", "*.safetensors", ADAPTER_PICKLE, "*.txt", "*.model", "*.jinja"]
            )
        except Exception as error:  # the hub's errors have no common type; each means that there is nothing to read
            problem = f"is no folder, and cannot be fetched from a hub: {one_line(error)}"
            raise RequestError("model.adapter", model.one_adapter, problem, sought(folder)) from None
    if model.task == PICTURES and any(Path(folder).glob("*.safetensors")):
        return folder  # `diffusion.adapters` says which of them
    if not (Path(folder) / ADAPTER_SETTINGS).is_file():
        raise RequestError("model.adapter", model.adapter, f"no {ADAPTER_SETTINGS} there", _elsewhere(Path(folder)))
    if not any((Path(folder) / name).is_file() for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE)):
        raise RequestError("model.adapter", model.adapter, f"no {ADAPTER_WEIGHTS} there", _elsewhere(Path(folder)))
    return folder


def _elsewhere(folder: Path) -> str:
    """What to give instead of a folder that holds no adapter itself: checkpoints, or adapters by their names."""
    found = [path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{ADAPTER_SETTINGS}")]
    found += [path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/*/{ADAPTER_SETTINGS}")]
    if not found:
        return "give a PEFT adapter"
    found.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    named = ", ".join(found[-_NAMED:])
    return f"give one of its folders: {named}" + (f" ({len(found)} in all)" if len(found) > _NAMED else "")


def listing_digest(url: str, key: str, options: Options | None = None) -> str:
    """What the store says of the files below an fsspec URL (names, sizes, tags), without reading them."""
    _, root, found = listing(url, key, options or {})
    return hashlib.sha256(_marks(root, found).encode()).hexdigest()


def listing(url: str, key: str, options: Options) -> tuple[AbstractFileSystem, str, dict[str, Any]]:
    """The store of an fsspec URL, the path in it, and all files below: {path: what the store says of it}.

    Raises `RequestError` naming `key` where there is none.
    """
    fs, root = open_store(url, key, options)
    fs.invalidate_cache()  # a listing that an earlier request of this process left: the model may be another by now
    try:
        listed = persistently(lambda: fs.find(root, detail=True))
        found = {path: info for path, info in listed.items() if info["type"] == "file"}
    except Exception as error:  # every storage library has its own classes
        raise RequestError(key, url, f"cannot be listed: {reason(error)}") from None
    if not found:
        raise RequestError(key, url, "no such directory, or an empty one")
    return fs, fs._strip_protocol(root).rstrip("/"), found


def _marks(root: str, files: dict[str, Any]) -> str:
    """A line per file. The same lines are the same model: a changed file has another size, tag or time."""
    return "\n".join(
        f"{path.removeprefix(root)} {info.get('size')} {info.get('ETag') or info.get('etag') or info.get('mtime')}"
        for path, info in sorted(files.items())
    )


def _fetched(url: str, key: str, weights: bool, options: Options) -> str:
    fs, root, found = listing(url, key, options)
    wanted = {p: i for p, i in found.items() if weights or not p.endswith(_WEIGHTS)}
    digest = hashlib.sha256(f"{url}\n{_marks(root, wanted)}".encode()).hexdigest()[:24]
    cache = Path(os.environ.get("DATAINF_CACHE") or Path.home() / ".cache" / "datainf_ray") / "models"
    target = cache / digest
    if target.is_dir():
        return str(target)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{digest}.lock"):  # the other workers of this machine wait for the first, and read its copy
        if not target.is_dir():
            try:
                _fetch(fs, root, list(wanted), target)
            except Exception as error:  # every storage library has its own classes
                raise RequestError(key, url, f"cannot be fetched: {reason(error)}") from None
    return str(target)


def _fetch(fs: AbstractFileSystem, root: str, paths: Sequence[str], target: Path) -> None:
    """Copy files below `root` into the directory `target`, which is there in one step when all of them are."""
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        for path in paths:
            local = scratch / (path.removeprefix(root).lstrip("/") or Path(path).name)  # a file's own address
            local.parent.mkdir(parents=True, exist_ok=True)
            persistently(functools.partial(fs.get_file, path, str(local)))
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
