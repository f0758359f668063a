"""The cells of an experiment: pieces that do not need each other, done by Ray's tasks, each kept when it is done.

A run that was cut off goes on with the cells that are not there. What a cell gives is a table, and the table of all
cells is that of the experiment; it follows from the configuration, not from who was first.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from datainf_ray.common.words import duration
from datainf_ray.runs.directory import RunDirectory


@dataclass(frozen=True)
class Kept:
    """What a cell keeps beside its records: its adapters, below `adapters/NAME` of the experiment's directory."""

    directory: RunDirectory
    name: str

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A local folder for the cell, gone at the end; `adapters` in it has what an earlier attempt has kept."""
        folder = Path(tempfile.mkdtemp(prefix="experiment-"))
        try:
            (folder / "adapters").mkdir()
            for name in self.directory.list(self._at):
                path = folder / "adapters" / name.removeprefix(self._at)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.directory.read(name))
            yield folder
        finally:
            shutil.rmtree(folder)

    def keep(self, folder: Path) -> None:
        """Keep what is in `adapters` of the workspace `folder`, weights last: they say that an adapter is whole."""
        root = folder / "adapters"
        files = [path for path in root.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.suffix == ".safetensors"):
            self.directory.write(f"{self._at}{path.relative_to(root)}", path.read_bytes())

    @property
    def _at(self) -> str:
        return f"adapters/{self.name}/"


#: What a cell is computed by: from its values, and what it keeps, a list of records.
Work = Callable[[Mapping[str, Any], Kept], list[dict[str, Any]]]


def compute(
    directory: RunDirectory,
    work: Work,
    cells: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Any],
    cpus: int = 1,
    gpus: float = 0,
) -> pa.Table:
    """The records of all cells, each beside its cell's own values as far as they are plain.

    Work is given the `common` values, too. A task takes `cpus` and `gpus`.
    """
    missing = [name for name in cells if not directory.exists(_file(name))]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them done before", flush=True)
    if missing:
        if not ray.is_initialized():
            package = {"py_modules": [str(Path(__file__).parents[1])]}  # on other machines nobody has it
            ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False, runtime_env=package)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(_one)
        waiting = {task.remote(work, dict(common), dict(cells[name]), directory, name, cpus): name for name in missing}
        began, done = time.perf_counter(), 0
        while waiting:
            (reference,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(reference)
            seconds = ray.get(reference)
            done += 1
            left = (time.perf_counter() - began) / done * len(waiting)
            print(f"{name}: {seconds:.0f} s; {len(waiting)} to go, about {duration(left)}", flush=True)
    return pa.concat_tables([_read(directory, name) for name in cells], promote_options="default")


def _one(
    work: Work, common: dict[str, Any], own: dict[str, Any], directory: RunDirectory, name: str, cpus: int
) -> float:
    import torch

    torch.set_num_threads(cpus)  # before the first product: bits and time depend on it
    began = time.perf_counter()
    records = work({**common, **own}, Kept(directory, name))
    plain = {key: value for key, value in own.items() if isinstance(value, str | int | float | bool)}
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**plain, **record} for record in records]), sink)
    directory.write(_file(name), sink.getvalue())
    return time.perf_counter() - began


def _read(directory: RunDirectory, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(directory.read(_file(name))))


def _file(name: str) -> str:
    return f"cells/{name}.parquet"
