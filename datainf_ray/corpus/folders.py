"""What of a folder is rows: not what lies beside them, and of several splits or configurations only one.

Folders are known as `datasets` and the Hugging Face hub write them: `save_to_disk`, `push_to_hub`, a clone of a
repository. Splits are told apart by names as `datasets.load_dataset` does.
"""

from __future__ import annotations

import itertools
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import yaml
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.files import below, kind_of, last_of

#: Files that say something about a dataset and are none of its rows, whatever their suffix.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_STATE = "state.json"  # of save_to_disk; another's file of that name may hold rows
_MOST = 64 << 20  # bytes of a file about a dataset
_LINKED = 10_000  # files that are looked at behind a link

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NAMED = {
    split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)") for split, words in _SPLITS.items()
}
_WORDS = {word for words in _SPLITS.values() for word in words}
_SHARD = re.compile(r"data/([^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_STARS, _MOST_STARS = re.compile(r"\*+"), 4  # in a pattern; matching takes long with many
_NULL = "__HIVE_DEFAULT_PARTITION__"

#: {split, configuration or both: the names of its files}
Parts = dict[str, list[str]]


def hidden(path: str, pattern: str = "") -> bool:
    """Whether a path has more parts that begin with `_` or `.` than the pattern by which it was found names."""

    def count(of: str) -> int:
        return sum(part.startswith(("_", ".")) for part in of.split("/"))

    return count(path) > count(pattern)


def partition_of(fs: AbstractFileSystem, path: str) -> tuple[tuple[str, str | None], ...]:
    """The columns that a path's folders say, as Hive has them: (("lang", "en"),) of lang=en/part-0.parquet."""
    if not isinstance(fs, LocalFileSystem):
        path = path.partition("?")[0]  # an address may be signed
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return tuple(
        (_unquoted(name), None if value == _NULL else _unquoted(value))
        for name, equals, value in pairs
        if name and equals
    )


def rows_in(fs: AbstractFileSystem, found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Of the files found below a folder, {path: info}, those that are rows.

    Left out are files about a dataset, what `datasets` keeps beside it, and what is no data file. Raises
    `RequestError` naming `key` where files that save_to_disk wrote are missing.
    """
    saved = {p.rpartition("/")[0]: _saved(fs, p, found, key) for p in found if last_of(p) == _STATE}
    saved = {folder: names for folder, names in saved.items() if names is not None}
    infos = {p for p in found if last_of(p) in ("dataset_info.json", "dataset_infos.json")}
    cached = {p.rpartition("/")[0] for p in infos}

    def is_row(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder in saved:
            return name in (saved[folder] or ())
        return name not in _ABOUT and kind_of(fs, path) is not None and not (folder in cached and _is_cache(name))

    return {path: info for path, info in found.items() if is_row(path)}


def rows_among(fs: AbstractFileSystem, found: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """Of the files that a pattern matches, {path: info}, all but files about a dataset and what `datasets` keeps.

    A pattern that ends in such a file's name, or in `cache-*.arrow`, asks for it.
    """
    asked = last_of(pattern)

    def beside(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if name in _ABOUT:
            return name != asked
        if name == _STATE:
            return name != asked and _files_of(_json(fs, path, found[path])) is not None
        kept = _is_cache(name) and not asked.startswith("cache-")
        return kept and any(fs.exists(f"{folder}/{about}") for about in (_STATE, "dataset_info.json"))

    return {path: info for path, info in found.items() if not beside(path)}


def parts_of(fs: AbstractFileSystem, directory: str, found: Mapping[str, Any], rows: Sequence[str]) -> Parts:
    """The parts of which a folder holds several, {} where its files are one dataset.

    `found` is all that lies below it, `rows` the paths among that are rows. Configurations, and splits with any names,
    are told by README.md; splits by dataset_dict.json, by names as data/train-00000-of-00001.parquet, and by words as
    train, validation, dev and test in the names of folders or files.
    """
    names = [below(path, directory) for path in rows]
    about = {below(path, directory): path for path in found}
    parts: Parts = {}
    if "README.md" in about:
        parts = _configurations(_text(fs, about["README.md"], found[about["README.md"]]), names)
    for told in (_dictionaries(fs, about, found), _shards(directory), _folder_words, _file_words):
        if parts:
            break
        for name in names:
            if (split := told(name)) is not None:
                parts.setdefault(split, []).append(name)
    return parts if len(parts) > 1 else {}


def splits_of_pictures(names: Sequence[str]) -> Parts:
    """The splits of which a folder of pictures has several, {} where it is one: by its own folders, which are all
    called as splits are. A folder that is called so beside others is one of subjects, and so may a picture be.
    """
    parts: Parts = {}
    for name in names:
        parts.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    return parts if len(parts) > 1 and all(part.lower() in _WORDS for part in parts) else {}


def ask_for_one(parts: Parts, key: str, entry: str, address: Callable[[str], str]) -> RequestError:
    """The error that says which parts there are, and how one is asked for; `address` completes a name."""
    first = ("validation", "test") if key.startswith("queries") else ("train",)
    order = sorted(parts, key=lambda part: (not any(word in part for word in first), part))
    mine = parts[order[0]]
    pattern = _pattern(mine, [name for part in order[1:] for name in parts[part] if name not in mine])
    listed = ", ".join(order[:8]) + (" …" if len(order) > 8 else "")
    shown = f'path: "{address(pattern)}"' if pattern else "path: [FILE, FILE]"
    return RequestError(key, entry, f"holds several splits or configurations: {listed}", f"name one, as in {shown}")


def linked_folder(
    fs: AbstractFileSystem, directory: str, wanted: Callable[[str], bool], depth: int | None = None
) -> str | None:
    """A link below a folder of this machine that leads to another folder with files that are `wanted`; None without.

    Listings do not follow such links. They are looked for down to `depth` folders; None: all.
    """
    if not isinstance(fs, LocalFileSystem):
        return None
    root = os.path.realpath(directory)
    for link in _links(directory, depth):
        if f"{os.path.realpath(link)}/".startswith(f"{root}/"):
            continue  # its files are listed where they lie
        behind = (f"{folder}/{name}" for folder, _, names in os.walk(link) for name in names)
        for number, path in enumerate(behind):
            if wanted(path) or number == _LINKED:
                return link
    return None


def _links(directory: str, depth: int | None) -> Iterator[str]:
    for folder, inner, _ in os.walk(directory):
        deep = folder.count("/") - directory.count("/")
        inner[:] = [] if depth is not None and deep >= depth else sorted(name for name in inner if not hidden(name))
        yield from (path for path in (f"{folder}/{name}" for name in inner) if os.path.islink(path))


def _saved(fs: AbstractFileSystem, path: str, found: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """The files that a state.json of save_to_disk names; None where it is no such file."""
    state = _json(fs, path, found[path])
    names = _files_of(state)
    if names is None:
        return None
    folder = path.rpartition("/")[0]
    if state.get("_indices_data_files") or state.get("_indices_files"):
        problem = "was saved with a selection of its rows beside it, by an old version of datasets"
        raise RequestError(key, folder, problem, "load it, call flatten_indices() and save it again")
    missing = next((name for name in names if f"{folder}/{name}" not in found), None)
    if missing is not None:
        raise RequestError(key, folder, f"{missing} is not there, which its state.json names", "save it again")
    return names


def _files_of(state: Any) -> tuple[str, ...] | None:
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(files, list):
        return None
    return tuple(str(file.get("filename")) for file in files if isinstance(file, dict))


def _is_cache(name: str) -> bool:
    return name.startswith("cache-") and name.endswith(".arrow")


def _text(fs: AbstractFileSystem, path: str, info: Mapping[str, Any]) -> str:
    if int(info.get("size") or 0) > _MOST or (isinstance(fs, LocalFileSystem) and not os.path.isfile(path)):
        return ""  # a pipe would be waited for
    return str(fs.cat_file(path).decode("utf-8", "replace"))


def _json(fs: AbstractFileSystem, path: str, info: Mapping[str, Any]) -> Any:
    try:
        return json.loads(_text(fs, path, info))
    except (ValueError, RecursionError):
        return None  # another's file of that name


def _configurations(readme: str, names: Sequence[str]) -> Parts:
    """The configurations and splits that the head of a hub's README.md declares, of which files are there."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", readme, re.DOTALL)
    try:
        card = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    parts: Parts = {}
    for split, config, patterns in _declared(card):
        match = re.compile("|".join(glob_translate(pattern.removeprefix("./")) for pattern in patterns)).match
        files = [name for name in names if match(name)]
        if files:
            parts.setdefault(f"{config} {split}".strip(), []).extend(files)
    return parts


def _declared(card: Any) -> Iterator[tuple[str, str, list[str]]]:
    """(split, configuration, patterns) of a dataset card; the configuration's name is empty where there is but one."""
    listed = card.get("configs") if isinstance(card, dict) else None
    configs = [config for config in listed if isinstance(config, dict)] if isinstance(listed, list) else []
    for config in configs:
        name = str(config.get("config_name", "default")) if len(configs) > 1 else ""
        files = config.get("data_files")
        if files is None and isinstance(config.get("data_dir"), str):
            files = f"{config['data_dir'].rstrip('/')}/**"
        for one in files if isinstance(files, list) and any(isinstance(f, dict) for f in files) else [files]:
            split, path = (one.get("split", ""), one.get("path")) if isinstance(one, dict) else ("", one)
            listed = path if isinstance(path, list) else [path]
            patterns = [p for p in listed if isinstance(p, str) and p and len(_STARS.findall(p)) <= _MOST_STARS]
            if patterns:
                yield str(split), name, patterns


def _dictionaries(
    fs: AbstractFileSystem, about: Mapping[str, str], found: Mapping[str, Any]
) -> Callable[[str], str | None]:
    """Tells a file's split where a DatasetDict was saved: the folder that its dataset_dict.json names."""
    folders: dict[str, str] = {}
    for name, path in about.items():
        if last_of(name) == "dataset_dict.json":
            saved = _json(fs, path, found[path])
            splits = saved.get("splits") if isinstance(saved, dict) else None
            root = name.removesuffix("dataset_dict.json")
            folders |= {f"{root}{split}/": f"{root}{split}" for split in splits or () if isinstance(split, str)}
    return lambda name: next((split for folder, split in folders.items() if name.startswith(folder)), None)


def _shards(directory: str) -> Callable[[str], str | None]:
    """Tells a file's split by its name, data/SPLIT-00000-of-00001.parquet, with the folder or within it."""
    within = "data/" if last_of(directory) == "data" else ""

    def split(name: str) -> str | None:
        match = _SHARD.fullmatch(within + name)
        return None if match is None else match[1]

    return split


def _folder_words(name: str) -> str | None:
    found = (split for part in name.split("/")[:-1] for split, words in _NAMED.items() if words.search(part))
    return next(found, None)


def _file_words(name: str) -> str | None:
    return next((split for split, words in _NAMED.items() if words.search(last_of(name))), None)


def _pattern(mine: Sequence[str], others: Sequence[str]) -> str | None:
    """A name, a folder or a pattern that means just these files; None where there is none as simple."""
    folder = posixpath.commonpath([posixpath.dirname(name) for name in mine])
    if folder and not any(name.startswith(f"{folder}/") for name in others):
        return folder
    if len(mine) == 1:
        return mine[0]
    start = _beginning(mine).rstrip("0123456789")
    end = _beginning([name[::-1] for name in mine])[::-1]
    for pattern in (f"{start}*", f"{folder}/*{end}".lstrip("/")):
        match = re.compile(glob_translate(pattern)).match
        if all(map(match, mine)) and not any(map(match, others)):
            return pattern
    return None


def _beginning(names: Sequence[str]) -> str:
    """What all names have in common at their beginnings, letter by letter."""
    first, last = min(names), max(names)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return first[:same]


def _unquoted(text: str) -> str:
    return unquote(text, errors="surrogateescape")
