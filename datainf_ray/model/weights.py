"""What a model's weight files show before they are loaded: whether they are whole, no pickles, and finite.

Of a base the headers are read, wherever it lies, and on this machine a few kilobytes of its tensors; of an adapter all
of it. So weights that cannot be used are found in a moment on the driver.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options, persistently, reason
from datainf_ray.common.words import counted
from datainf_ray.config import ModelConfig
from datainf_ray.model.adapter import read_pickled
from datainf_ray.model.files import ADAPTER_WEIGHTS, is_remote, listing, local_folder

_STEM = "model"  # of transformers' files: model.safetensors first, then the model.safetensors.index.json of shards
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LONGEST_HEADER = 100 * 2**20  # as safetensors has it
_THREADS = 16  # headers read at a time: mostly waiting for the store
_TENSORS, _PIECE = 256, 4096  # of a base, at most so many tensors are looked into, and so many bytes of each
_ADAPTER_BYTES = 512 * 2**20  # of an adapter, all values are looked at up to this size; of a larger one, pieces

#: By safetensors' name of a dtype: as numpy reads it, and the bits of the exponent, which are all 1 in what is not
#: finite. Narrower floats and integers are not looked into.
_DTYPES = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}

#: Bytes start..stop-1 of a file.
Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    first: int  #: where it begins in the file
    last: int  #: where it ends

    @property
    def count(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Files:
    """A model's files: those that lie in its folder itself."""

    sizes: Mapping[str, int]
    read: Callable[[str, int, int], bytes]  # of a file, by its name
    local: bool


def require_sound_base(
    model: ModelConfig, options: Options | None = None, part: str = "", stems: Sequence[str] = (_STEM,)
) -> dict[str, tuple[int, ...]] | None:
    """Raises `RequestError` naming model.base where its weights are pickled, not all there, truncated or NaN.

    With `part` they are those of a folder in the base's, as a pipeline has them. The files' names begin with one of
    `stems`, the first of which there are any.

    Returns the names and shapes of its tensors; None where they are not here to be seen: a hub id is left to the
    worker, which fetches it.
    """
    files = _files_of(model.base, options or {}, part)
    if files is None:
        return None
    try:
        wholes = [f"{stem}.safetensors" for stem in stems]
        there = (name for name in wholes if {name, f"{name}.index.json"} & files.sizes.keys())
        whole = next(there, wholes[0])
        shards = _shards(files, whole)
        with ThreadPoolExecutor(_THREADS) as pool:
            headers = list(pool.map(lambda name: _header(files, name), shards))
        for (name, expected), header in zip(shards.items(), headers, strict=True):
            wanting = next((key for key in expected if key not in header), None)
            if wanting is not None:
                raise ValueError(f"{whole}.index.json says that {name} has {wanting}, and it has not")
        if files.local:
            _must_not_be_nan(files, dict(zip(shards, headers, strict=True)))
    except _Wrong as error:
        raise RequestError("model.base", model.base, error.args[0], error.args[1]) from None
    except ValueError as error:
        raise RequestError("model.base", model.base, one_line(error)) from None
    except Exception as error:  # every storage library has its own classes
        raise RequestError("model.base", model.base, f"its weights cannot be read: {reason(error)}") from None
    return {key: tensor.shape for header in headers for key, tensor in header.items()} or None


def require_sound_adapter(model: ModelConfig, folder: str) -> None:
    """Raises `RequestError` naming model.adapter where its weights are truncated or not finite."""
    file = Path(folder) / ADAPTER_WEIGHTS
    if not file.is_file():
        for name, values in read_pickled(folder).items():
            bad = int(values.numel() - values.isfinite().sum())
            must_be_finite(model, name, bad, values.numel())
        return
    read = functools.partial(_read_local, file)
    size = file.stat().st_size
    try:
        tensors = read_header(read, size)
    except ValueError as error:
        raise RequestError("model.adapter", model.adapter, f"{ADAPTER_WEIGHTS} {error}") from None
    most = size if size <= _ADAPTER_BYTES else _ADAPTER_BYTES // max(len(tensors), 1)
    for name, tensor in tensors.items():
        bad, looked = _not_finite(tensor, read, most)
        must_be_finite(model, name, bad, looked)


def must_be_finite(model: ModelConfig, name: str, bad: int, looked: int) -> None:
    """Raises `RequestError` where `bad` of the values of an adapter's tensor that were looked at are not finite."""
    if bad:
        raise RequestError(
            "model.adapter",
            model.adapter,
            f"{name} has {counted(bad, 'value')} of {looked:,} that {'is' if bad == 1 else 'are'} not finite",
            "take a checkpoint from before the training went wrong",
        )


def read_header(read: Read, size: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file of `size` bytes, by name, from the file's beginning.

    Raises ValueError, to stand behind the file's name, where it has no such header, or is longer or shorter than that
    says.
    """
    length = int.from_bytes(read(0, 8), "little") if size >= 8 else 0
    if not 0 < length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"is no safetensors file, or a truncated one: it has {size:,} bytes and no whole header")
    begin = 8 + length
    try:
        tensors = {}
        for name, told in json.loads(read(8, begin)).items():
            if name != "__metadata__":
                first, last = (begin + int(offset) for offset in told["data_offsets"])
                tensors[name] = Tensor(str(told["dtype"]), tuple(map(int, told["shape"])), first, last)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("is no safetensors file: its header is broken") from None
    end = max((tensor.last for tensor in tensors.values()), default=begin)
    if end != size:
        problem = "truncated" if end > size else "not what its header says"
        raise ValueError(f"is {problem}: it has {size:,} bytes, and by its header {end:,}")
    return tensors


class _Wrong(Exception):
    """A problem and its remedy."""


def _files_of(base: str, options: Options, part: str) -> _Files | None:
    """The files of the base, or of the folder `part` in it; None where they are not here to be seen."""
    if is_remote(base):
        fs, root, found = listing(base, "model.base", options)
        below = f"{root.rstrip('/')}/{part}".rstrip("/") + "/"
        names = {path.removeprefix(below): path for path in found if path.startswith(below)}
        sizes = {name: int(found[path].get("size") or 0) for name, path in names.items() if "/" not in name}

        def read(name: str, start: int, stop: int) -> bytes:
            got: bytes = persistently(lambda: fs.cat_file(names[name], start=start, end=stop))
            return got

        return _Files(sizes, read, local=False)
    folder = Path(local_folder(base, "model.base"))
    if not folder.is_dir():  # a hub id
        return None
    folder /= part
    if not folder.is_dir():
        raise RequestError("model.base", base, f"has no folder {part}", "copy all of the model")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    return _Files(sizes, lambda name, start, stop: _read_local(folder / name, start, stop), local=True)


def _shards(files: _Files, whole: str) -> dict[str, list[str]]:
    """The files that the weights lie in, and the tensors that the index, if there is one, says each of them has."""
    index = f"{whole}.index.json"
    if whole in files.sizes:
        return {whole: []}
    if index in files.sizes:
        try:
            places = json.loads(files.read(index, 0, files.sizes[index]))["weight_map"].items()
            shards: dict[str, list[str]] = {}
            for tensor, name in places:
                shards.setdefault(str(name), []).append(tensor)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{index} is no index: it has no weight_map") from None
        missing = sorted(shards.keys() - files.sizes.keys())
        if missing:
            more = f" and {len(missing) - 1} more that {index} names" if missing[1:] else f", which {index} names"
            raise _Wrong(f"there is no {missing[0]}{more}", "copy all of the model")
        return shards
    pickled = sorted(name for name in files.sizes if name.endswith(_PICKLES))
    if pickled and not any(name.endswith(".safetensors") for name in files.sizes):
        raise _Wrong(
            f"its weights are pickled ({pickled[0]}), and loading a pickle runs what is in it",
            "save it again with safe_serialization=True",
        )
    if not any(name.endswith(".safetensors") for name in files.sizes):
        raise _Wrong(f"it has no weights: there is no {whole}", "copy all of the model")
    return {}  # under a name that its configuration says: the worker's loader tells


def _header(files: _Files, name: str) -> dict[str, Tensor]:
    try:
        return read_header(functools.partial(files.read, name), files.sizes[name])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _must_not_be_nan(files: _Files, headers: Mapping[str, Mapping[str, Tensor]]) -> None:
    tensors = [(name, key, tensor) for name, header in headers.items() for key, tensor in header.items()]
    for name, key, tensor in _some(tensors, _TENSORS):
        bad, looked = _not_finite(tensor, functools.partial(files.read, name), _PIECE, nan=True)
        if looked and bad == looked:
            raise _Wrong(f"{key} in {name} is all NaN, as far as it was looked at ({looked:,} values)", "copy it again")


def _some(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, from the first to the last."""
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))]


def _not_finite(tensor: Tensor, read: Read, most: int, nan: bool = False) -> tuple[int, int]:
    """How many of a tensor's values, in its first `most` bytes, are not finite, or NaN; and how many were looked at."""
    if tensor.dtype not in _DTYPES:
        return 0, 0
    kind, exponent = _DTYPES[tensor.dtype]
    width = np.dtype(kind).itemsize
    count = min(tensor.count, most // width)
    bits = np.frombuffer(read(tensor.first, tensor.first + count * width), kind)
    bad = (bits & kind(exponent)) == kind(exponent)
    if nan:
        bad &= (bits & kind((exponent & -exponent) - 1)) != 0  # infinity has no mantissa
    return int(bad.sum()), len(bits)


def _read_local(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)
