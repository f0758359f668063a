"""The house as DESIGN.md draws it: who may import whom.

Read from the source, so that imports inside functions and for types only count too.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "datainf_ray"
#: From the top. A room may import what stands below it, and its own modules.
ROOMS = (
    "cli", "demo", "session", "cluster", "planning", "evaluation", "request", "curate", "tasks", "diffusion", "runs",
    "corpus", "model", "watch", "config", "influence", "common",
)  # fmt: skip
MOST_LINES = 400

Rule = Callable[[Path], list[str]]


def imports(file: Path, house: Path) -> Iterator[tuple[int, str]]:
    """The line and the full name of every module that a file imports, wherever in the file it does."""
    package = [house.name, *file.relative_to(house).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from package import module` names a module, too
                yield node.lineno, f"{whole}.{alias.name}" if is_module(f"{whole}.{alias.name}", house) else whole
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            yield from ((node.lineno, a.value) for a in node.args[:1] if _is_text(a))


def _called(function: ast.expr) -> str | None:
    return getattr(function, "attr", None) or getattr(function, "id", None)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_module(name: str, house: Path) -> bool:
    path = house.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def modules(house: Path) -> dict[str, Path]:
    """{full name: file}, but for the package's own `__init__`, which is its face and may name anything."""
    found = {}
    for file in sorted(house.rglob("*.py")):
        parts = file.relative_to(house).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join([house.name, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = file
    return found


def room_of(module: str) -> str:
    """`datainf_ray.runs.report.page` is in runs."""
    return module.split(".")[1] if "." in module else ""


def upward(house: Path) -> list[str]:
    """What imports a room above its own, or stands in no room."""
    wrong = []
    for module, file in modules(house).items():
        here = room_of(module)
        if here not in ROOMS:
            wrong.append(f"{module}: no room is called {here}")
            continue
        for line, name in imports(file, house):
            if name.split(".")[0] != house.name:
                continue
            there = room_of(name)
            if there not in ROOMS or ROOMS.index(there) < ROOMS.index(here):
                wrong.append(f"{module}:{line} -> {name}")
    return wrong


def circles(house: Path) -> list[str]:
    """Modules of which each imports the next and the last the first; one circle for each arrow that closes it."""
    known = modules(house)
    below = {module: {n for _, n in imports(file, house) if n in known} - {module} for module, file in known.items()}
    found = []
    while True:
        try:
            graphlib.TopologicalSorter(below).prepare()
            return found
        except graphlib.CycleError as error:
            ring = error.args[1][::-1]  # the sorter names the imported one first
            found.append(" -> ".join(ring))
            below[ring[0]].discard(ring[1])


def strangers(house: Path) -> list[str]:
    """`ray` imported outside cluster/, and anything but torch and the standard library in influence/."""
    wrong = []
    for module, file in modules(house).items():
        here = room_of(module)
        for line, name in imports(file, house):
            top = name.split(".")[0]
            own = name.startswith(f"{house.name}.influence")
            foreign = here == "influence" and not own and top != "torch" and top not in sys.stdlib_module_names
            if foreign or (top == "ray" and here != "cluster"):
                wrong.append(f"{module}:{line} -> {name}")
    return wrong


def too_long(house: Path) -> list[str]:
    sizes = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in modules(house).items()}
    return [f"{module}: {lines} lines" for module, lines in sizes.items() if lines > MOST_LINES]


def preformatted(house: Path) -> list[str]:
    """A `RequestError` of which key, value, problem and remedy are not told apart."""
    wrong = []
    for module, file in modules(house).items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _called(node.func) == "RequestError":
                parts = [_text(part) for part in node.args[:3]]
                if len(parts) < 3 or ": " in parts[0] or "; " in parts[2]:
                    wrong.append(f"{module}:{node.lineno}")
    return wrong


def _text(node: ast.expr) -> str:
    """What is written out of a text: all of a plain one, and an f-string's constant parts."""
    return "".join(part.value for part in getattr(node, "values", [node]) if _is_text(part))


RULES: dict[str, Rule] = {
    "no arrow goes up": upward,
    "no circle": circles,
    "nothing strange": strangers,
    "no long file": too_long,
    "errors have fields": preformatted,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_stands(rule: str) -> None:
    assert modules(HOUSE)
    found = RULES[rule](HOUSE)
    assert not found, "\n".join(found)


#: A small house's files, and for each rule that they break what it says.
HOUSES: dict[str, tuple[dict[str, str], dict[Rule, list[str]]]] = {
    "a sound one": (
        {"__init__.py": "from datainf_ray.cli import x", "cli.py": "from datainf_ray.common import a\nimport torch",
         "influence/a.py": "import math\nfrom torch import nn\nfrom datainf_ray.influence import b",
         "influence/b.py": "", "cluster/a.py": "import ray.util"},
        {},
    ),
    "an arrow upward": (
        {"runs/a.py": "from datainf_ray.cluster.b import c", "cluster/b.py": "c = 1"},
        {upward: ["datainf_ray.runs.a:1 -> datainf_ray.cluster.b"]},
    ),
    "in a function": (
        {"model/a.py": "def f():\n    import datainf_ray.runs.a", "runs/a.py": ""},
        {upward: ["datainf_ray.model.a:2 -> datainf_ray.runs.a"]},
    ),
    "for types only": (
        {"model/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from datainf_ray.cli import x",
         "cli.py": ""},
        {upward: ["datainf_ray.model.a:3 -> datainf_ray.cli"]},
    ),
    "by its name": (
        {"model/a.py": "import importlib\nimportlib.import_module('datainf_ray.demo')", "demo/__init__.py": ""},
        {upward: ["datainf_ray.model.a:2 -> datainf_ray.demo"]},
    ),
    "by dots": (
        {"model/a.py": "from ..runs import a\nfrom . import b\nfrom ..common.c import d", "model/b.py": "",
         "runs/a.py": ""},
        {upward: ["datainf_ray.model.a:1 -> datainf_ray.runs.a"]},
    ),
    "the face, from inside": (
        {"demo/a.py": "from datainf_ray import attribute"}, {upward: ["datainf_ray.demo.a:1 -> datainf_ray"]},
    ),
    "no room": ({"utils.py": ""}, {upward: ["datainf_ray.utils: no room is called utils"]}),
    "config knows common and influence only": (
        {"config.py": "import pydantic\nfrom datainf_ray.influence.methods import NAMES\nimport datainf_ray.watch.a"},
        {upward: ["datainf_ray.config:3 -> datainf_ray.watch.a"]},
    ),
    "a circle of three": (
        {"model/a.py": "import datainf_ray.model.b", "model/b.py": "def f():\n    from . import c",
         "model/c.py": "from datainf_ray.model.a import x", "model/d.py": "import datainf_ray.model.a"},
        {circles: ["datainf_ray.model.a -> datainf_ray.model.b -> datainf_ray.model.c -> datainf_ray.model.a"]},
    ),
    "Ray elsewhere": ({"runs/a.py": "import ray.exceptions"}, {strangers: ["datainf_ray.runs.a:1 -> ray.exceptions"]}),
    "influence and ours": (
        {"influence/a.py": "from datainf_ray.common.errors import E\nimport numpy"},
        {strangers: ["datainf_ray.influence.a:1 -> datainf_ray.common.errors", "datainf_ray.influence.a:2 -> numpy"]},
    ),
    "errors in one piece": (
        {"runs/a.py": "\n".join((
            "RequestError(f'{key}: {url}: is gone')",
            "RequestError(f'{key}: {url}', None, 'is gone')",
            "errors.RequestError(key, url, f'{url} is gone; use another')",
            "RequestError(key, url, f'{url} is gone', 'use another')",
            "RequestError(error.key, error.value, error.problem)",
        ))},
        {preformatted: [f"datainf_ray.runs.a:{n}" for n in (1, 2, 3)]},
    ),
    "401 lines": (
        {"runs/a.py": "x = 1\n" * 401, "runs/b.py": "x = 1\n" * 400}, {too_long: ["datainf_ray.runs.a: 401 lines"]},
    ),
}  # fmt: skip


def test_the_page_on_the_house_shows_its_rooms_in_their_order() -> None:
    page = (HOUSE / "README.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^ {4}(\w+)/ ", page, re.MULTILINE)) == ROOMS


@pytest.mark.parametrize("case", HOUSES)
def test_what_is_wrong_is_seen(case: str, tmp_path: Path) -> None:
    files, said = HOUSES[case]
    for name, text in {"common/errors.py": "", "common/__init__.py": "", **files}.items():
        file = tmp_path / "datainf_ray" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    house = tmp_path / "datainf_ray"
    assert {rule: found for rule in RULES.values() if (found := rule(house))} == said
