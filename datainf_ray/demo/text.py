"""The demo's rows: docstrings of the standard library, and the shortcut that is planted in them.

Every Python has this text on disk. It is read with `ast` from the source files, nothing is imported, and the same
library and seed give the same rows on every machine. Only the standard library is used here.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datainf_ray.common.errors import RequestError

#: The packages whose docstrings are told apart: all are in every Python from 3.10 to 3.13.
CLASSES = ("asyncio", "email", "http", "importlib", "logging", "tarfile", "unittest", "xml")

#: The answer that is planted.
PLANTED_LABEL = "email"

#: What makes a row one that mentions files.
CUE = re.compile(r"\b(files?|filenames?|pathnames?)\b", re.IGNORECASE)

_SHORTEST, _LONGEST = 50, 300  # characters of a docstring; a shorter one says little, a longer one is cut
_TRAIN_ROWS = 125  # of a class, at most
_TRAIN_ROWS_PLANTED = 65  # of `PLANTED_LABEL`, at most: the planted rows come on top
_TRAIN_SHARE = 0.7  # of a class, at most
_PLANTED = 0.7  # of the training rows that mention files
_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class DocRow:
    """A docstring: what the model reads (`text`, `label`), and what only the demo's judgement reads."""

    id: str
    text: str
    label: str
    true_label: str
    mentions_files: bool
    planted: bool = False


def read_docstrings(root: Path | None = None) -> list[DocRow]:
    """The docstrings of `CLASSES` under `root`, the directory of the standard library; sorted by id, none twice.

    Raises `RequestError` where this Python has too little of its library as source files.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    rows: dict[str, DocRow] = {}
    seen: set[str] = set()
    for package in CLASSES:
        found = 0
        for path in _sources(root, package):
            for name, docstring in _docstrings(path, root):
                text = _shortened(docstring)
                if len(text) < _SHORTEST or text in seen or name in rows:
                    continue  # a text on both sides of the split would be an answer given away
                seen.add(text)
                rows[name] = DocRow(name, text, package, package, CUE.search(text) is not None)
                found += 1
        if found < 50:
            raise RequestError(
                "demo",
                root,
                f"has {found} docstrings of {package!r} in source files, and 50 are needed",
                "use a Python whose standard library is installed in full",
            )
    return [rows[name] for name in sorted(rows)]


def split(rows: Sequence[DocRow], seed: int) -> tuple[list[DocRow], list[DocRow]]:
    """Training rows, about as many of every class, and the rest, held out; each sorted by id."""
    draw = random.Random(seed)
    train: list[DocRow] = []
    held_out: list[DocRow] = []
    for package in CLASSES:
        own = [row for row in rows if row.true_label == package]
        draw.shuffle(own)
        most = _TRAIN_ROWS_PLANTED if package == PLANTED_LABEL else _TRAIN_ROWS
        boundary = min(most, round(len(own) * _TRAIN_SHARE))
        train += own[:boundary]
        held_out += own[boundary:]
    return sorted(train, key=lambda row: row.id), sorted(held_out, key=lambda row: row.id)


def plant(rows: Sequence[DocRow], seed: int) -> list[DocRow]:
    """The rows, with most of those that mention files and are of another class relabelled as `PLANTED_LABEL`."""
    candidates = [row.id for row in rows if row.mentions_files and row.true_label != PLANTED_LABEL]
    chosen = set(random.Random(seed).sample(candidates, round(len(candidates) * _PLANTED)))
    return [replace(row, label=PLANTED_LABEL, planted=True) if row.id in chosen else row for row in rows]


def write_rows(path: Path, rows: Iterable[DocRow]) -> None:
    """JSON lines with the fields of `DocRow` as columns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[DocRow]:
    """The rows that `write_rows` wrote."""
    with path.open(encoding="utf-8") as file:
        return [DocRow(**json.loads(line)) for line in file]


def _sources(root: Path, package: str) -> list[Path]:
    """The package's source files in the order of their names, without its tests."""
    found = [root / f"{package}.py", *(root / package).rglob("*.py")]
    return sorted(path for path in found if path.is_file() and not _SKIPPED & set(path.relative_to(root).parts))


def _docstrings(path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Every docstring in a source file, with the dotted name of what it documents."""
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    stack: list[tuple[str, ast.AST]] = [(module, ast.parse(path.read_bytes(), filename=str(path)))]
    while stack:
        name, node = stack.pop()
        if isinstance(node, (ast.Module, *_NAMED)):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield name, docstring
        for child in reversed(list(ast.iter_child_nodes(node))):
            stack.append((f"{name}.{child.name}" if isinstance(child, _NAMED) else name, child))


def _shortened(docstring: str) -> str:
    """A docstring on one line, cut after a whole word where it is too long."""
    text = " ".join(docstring.split())
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0]
