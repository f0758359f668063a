"""The cells of an experiment: pieces that do not need each other, done by Ray's tasks, each kept when it is done.

A run that was cut off goes on with the cells that are not there. What a cell gives is a table, and the table of all
cells is that of the experiment; it follows from the configuration, not from who was first. A cell's file and what it
keeps say for which values they were made (`digest`); those of other values are made again.
"""

from __future__ import annotations

import hashlib
import io
import json
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

_DIGEST = b"experiment.cell"


@dataclass(frozen=True)
class Kept:
    """What a cell keeps beside its records: its adapters, below `adapters/NAME` of the experiment's directory."""

    directory: RunDirectory
    name: str
    digest: str = ""  #: of the cell's values; empty: whatever they were

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A local folder for the cell, gone at the end; `adapters` in it has what an earlier attempt has kept."""
        folder = Path(tempfile.mkdtemp(prefix="experiment-"))
        try:
            (folder / "adapters").mkdir()
            self._forget_others()
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
        self.directory.write(self._mark, self.digest.encode())
        files = [path for path in root.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.suffix == ".safetensors"):
            self.directory.write(f"{self._at}{path.relative_to(root)}", path.read_bytes())

    def _forget_others(self) -> None:
        """Remove what was kept for other values."""
        if (
            self.digest
            and self.directory.exists(self._mark)
            and self.directory.read(self._mark).decode() != self.digest
        ):
            for name in self.directory.list(self._at):
                self.directory.remove(name)
            self.directory.remove(self._mark)

    @property
    def _at(self) -> str:
        return f"adapters/{self.name}/"

    @property
    def _mark(self) -> str:
        return f"adapters/{self.name}.digest"


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
    missing = [name for name, own in cells.items() if not _is_done(directory, name, {**common, **own})]
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
    values = {**common, **own}
    digest = digest_of(values)
    records = work(values, Kept(directory, name, digest))
    plain = {key: value for key, value in own.items() if isinstance(value, str | int | float | bool)}
    sink = io.BytesIO()
    table = pa.Table.from_pylist([{**plain, **record} for record in records])
    pq.write_table(table.replace_schema_metadata({_DIGEST: digest}), sink)
    directory.write(_file(name), sink.getvalue())
    return time.perf_counter() - began


def digest_of(values: Mapping[str, Any]) -> str:
    """What a cell's values are known by."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()


def _is_done(directory: RunDirectory, name: str, values: Mapping[str, Any]) -> bool:
    """Whether a cell is there, made for these values; one that does not say for which ones is taken for it."""
    if not directory.exists(_file(name)):
        return False
    made_for = (pq.read_schema(io.BytesIO(directory.read(_file(name)))).metadata or {}).get(_DIGEST)
    if made_for in (None, digest_of(values).encode()):
        return True
    print(f"{name}: made for other values, and made again", flush=True)
    return False


def _read(directory: RunDirectory, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(directory.read(_file(name)))).replace_schema_metadata()


def _file(name: str) -> str:
    return f"cells/{name}.parquet"
