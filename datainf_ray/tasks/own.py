"""A task of the user's own: `package.module:TASK`, found here, and taken along to the workers.

The module is looked for on sys.path and then in the current directory. What lies outside site-packages travels: the
module's file, or the whole of the package that it is in.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.words import byte_size
from datainf_ray.tasks.task import Task

MOST_BYTES = 32 * 2**20  #: of a package that is taken along
_LOCK = threading.Lock()  # sys.path and sys.modules belong to the whole process
_LOADED: dict[str, str] = {}  # top-level module: what was imported here under that name


@dataclass(frozen=True)
class TaskCode:
    """The Python code of a task: a module's file, or the files of its package."""

    top: str  #: the name of the top-level module or package
    root: str  #: the directory that it lies in, on this machine
    files: dict[str, bytes]  #: by their paths below `root`
    installed: bool  #: in site-packages, where every machine has its own

    @property
    def digest(self) -> str:
        total = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            total.update(f"{path} {len(content)}\n".encode())
            total.update(content)
        return total.hexdigest()


def load_task(name: str, trusted: bool) -> Task:
    """The task that `package.module:TASK` names. Raises `RequestError`; runs no code of it unless it is `trusted`."""
    if not trusted:
        raise _wrong(
            name,
            "a task of your own is Python code, which runs here and on every worker",
            "allow that with model.trust_remote_code: true",
        )
    module_name, _, attribute = name.partition(":")
    code = code_of(name)
    with _LOCK:
        module = _imported(code, module_name, name)
    where = f"{module_name} ({module.__file__})"
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if isinstance(value, Task)]
        raise _wrong(name, f"{where} has no {attribute!r}", f"it has {' and '.join(known)}" if known else None)
    task = getattr(module, attribute)
    if not isinstance(task, Task):
        raise _wrong(name, f"that is a {type(task).__name__} in {where}, not a datainf_ray.tasks.Task")
    return task


def code_of(name: str) -> TaskCode:
    """The code of the task that `package.module:TASK` names, which is not run. Raises `RequestError`."""
    module, _, attribute = name.partition(":")
    top = module.partition(".")[0]
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise _wrong(name, "a task of your own is named package.module:TASK")
    found = importlib.machinery.PathFinder.find_spec(top, [*sys.path, os.getcwd()]) or _elsewhere(top)
    places = list((found and found.submodule_search_locations) or [])
    if found is None or not (places or found.has_location):
        raise _wrong(name, f"there is no module {top!r} in {os.getcwd()} or on sys.path")
    path = Path(places[0] if places else str(found.origin)).resolve()
    root = path.parent
    installed = _is_installed(root) or top == "datainf_ray"
    pattern = "*.py" if installed else "*"
    paths = [p for p in sorted(path.rglob(pattern)) if _is_part(p, path)] if places else [path]
    size = sum(p.stat().st_size for p in paths)
    if size > MOST_BYTES and not installed:
        raise _wrong(
            name,
            f"the package {path} has {byte_size(size)} of files, and {byte_size(MOST_BYTES)} is the most that "
            "is sent to workers",
            "put the task into a module of its own, or install the package on every node",
        )
    return TaskCode(top, str(root), {str(p.relative_to(root)): p.read_bytes() for p in paths}, installed)


def unpack(code: TaskCode) -> None:
    """Have a task's code on this machine, where this process will find it first; for workers and drivers elsewhere.

    It lies in the cache directory (`DATAINF_CACHE`, else ~/.cache/datainf_ray), under its digest.
    """
    if code.installed:
        return
    cache = Path(os.environ.get("DATAINF_CACHE") or Path.home() / ".cache" / "datainf_ray") / "tasks"
    target = cache / code.digest[:24]
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as scratch:
            whole = Path(scratch) / "whole"
            for path, content in code.files.items():
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_bytes(content)
            try:
                whole.rename(target)  # there in one step
            except OSError:
                if not target.is_dir():  # another process of this machine was first
                    raise
    sys.path.insert(0, str(target))


def _wrong(task: str, problem: str, remedy: str | None = None) -> RequestError:
    return RequestError("model.task", task, problem, remedy)


def _elsewhere(top: str) -> importlib.machinery.ModuleSpec | None:
    """What other finders know, as of packages that are installed to be edited."""
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return None


def _imported(code: TaskCode, name: str, task: str) -> ModuleType:
    """The module, imported again where its code has changed since this was done before.

    What the program itself has imported under that name stays.
    """
    version = f"{code.root} {code.digest}"
    if _LOADED.get(code.top, version) != version:
        for known in [m for m in sys.modules if m == code.top or m.startswith(f"{code.top}.")]:
            del sys.modules[known]
    elif code.top in sys.modules and (there := _root_of(sys.modules[code.top])) not in (None, code.root):
        raise _wrong(task, f"found in {code.root}, but {code.top!r} was imported from {there} before")
    ours = code.top in _LOADED or code.top not in sys.modules
    importlib.invalidate_caches()
    try:
        with _first_on_path(code.root):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _wrong(task, f"{name} cannot be imported: {one_line(error)}") from None
        raise _wrong(task, f"there is no module {error.name!r} in {code.root}") from None
    except Exception as error:  # it is the user's code: anything
        raise _wrong(task, f"{name} cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    finally:
        if ours and code.top in sys.modules:
            _LOADED[code.top] = version


def _root_of(module: ModuleType) -> str | None:
    """The directory that a top-level module or package was imported from; None where that cannot be told."""
    places = list(getattr(module, "__path__", ())) or ([module.__file__] if getattr(module, "__file__", None) else [])
    return str(Path(places[0]).resolve().parent) if places else None


@contextmanager
def _first_on_path(root: str) -> Iterator[None]:
    sys.path.insert(0, root)
    try:
        yield
    finally:
        sys.path.remove(root)


def _is_installed(root: Path) -> bool:
    paths = sysconfig.get_paths()
    return bool({"site-packages", "dist-packages"} & set(root.parts)) or str(root) in (
        paths["stdlib"],
        paths["platstdlib"],
    )


def _is_part(path: Path, package: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(package).parts)
    return path.is_file() and not hidden
