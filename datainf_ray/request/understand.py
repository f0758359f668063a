"""A request as far as it can be understood in a moment: files, columns, places. No torch, no model, no cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datainf_ray.config import RunConfig
from datainf_ray.corpus.beside import known_corpus
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.curate.by import require_by
from datainf_ray.model.files import adapter_folder
from datainf_ray.request.checkpoints import checkpoints
from datainf_ray.request.places import check_places, model_places
from datainf_ray.request.template import with_template
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.tasks.register import task_for_rows


@dataclass(frozen=True)
class Request:
    """A configuration whose files are there; local paths in `config.model` are absolute."""

    config: RunConfig
    directory: RunDirectory
    corpora: dict[str, Corpus]  # train, queries


def begun(directory: RunDirectory) -> bool:
    """Whether there is a run already. Raises `RequestError` if the directory cannot be reached."""
    with directory.reached():
        return directory.exists("run.json")


def understand(config: RunConfig) -> Request:
    """Find the task, the rows, their columns, the adapter and the place of the output. Raises `RequestError`."""
    return _placed(config, corpora_of(config))


def understand_each(config: RunConfig) -> tuple[RunDirectory, list[Request]]:
    """Where the sum of several adapters' influences is put, and the request of each adapter's own run.

    Raises `RequestError` as `understand` does.
    """
    whole, corpora = absolute(config), corpora_of(config)
    directory = RunDirectory(config.output, options=config.storage_options)
    check_places(directory, None, model_places(whole.model, config.storage_options), _entries(whole, corpora))
    return directory, [_placed(one, corpora, directory) for one in checkpoints(config)]


def corpora_of(config: RunConfig) -> dict[str, Corpus]:
    """The training rows and the queries, found."""
    options = config.storage_options
    found = {
        "train": known_corpus(config.train, task_for_rows(config, "train"), "train", options),
        "queries": known_corpus(config.queries, task_for_rows(config, "queries"), "queries", options),
    }
    if config.results.by is not None:
        require_by(config.results.by, found["train"], "results.by")
    return found


def _placed(config: RunConfig, corpora: dict[str, Corpus], within: RunDirectory | None = None) -> Request:
    """The request of a run, of which adapter and places are looked at; it may lie `within` the one it is made for."""
    options = config.storage_options
    directory = RunDirectory(config.output, options=options)
    index = index_directory(config)
    config = absolute(config)
    adapter_folder(config.model, options)
    check_places(directory, index, model_places(config.model, options), _entries(config, corpora), within)
    return Request(config, directory, corpora)


def _entries(config: RunConfig, corpora: dict[str, Corpus]) -> dict[str, tuple[Sequence[str], Corpus]]:
    return {"train": (config.train.paths, corpora["train"]), "queries": (config.queries.paths, corpora["queries"])}


def index_directory(config: RunConfig) -> RunDirectory | None:
    """Where a run's gradient index is: beside its tables, or where the configuration says."""
    if not config.index:
        return None
    url = f"{config.output.rstrip('/')}/index" if config.index is True else config.index
    return RunDirectory(url, "index", config.storage_options)


def portable(config: RunConfig) -> RunConfig:
    """The same request for a process with another working directory: every local path is absolute."""

    def resolved(path: str) -> str:
        return path if "://" in path or "::" in path else os.path.abspath(os.path.expanduser(path))

    changed: dict[str, Any] = {"output": resolved(config.output)}
    if isinstance(config.index, str):
        changed["index"] = resolved(config.index)
    for name in ("train", "queries"):
        rows = getattr(config, name)
        changed[name] = rows.model_copy(update={"path": tuple(map(resolved, rows.paths))})
    return with_template(absolute(config)).model_copy(update=changed)


def absolute(config: RunConfig) -> RunConfig:
    """Local paths of the model as absolute ones: a worker's working directory is another."""

    def resolved(reference: str) -> str:
        path = Path(reference).expanduser()
        return str(path.resolve()) if "://" not in reference and path.exists() else reference

    model, adapter = config.model, config.model.adapter
    several = tuple(map(resolved, adapter)) if isinstance(adapter, tuple) else None
    changed = model.model_copy(
        update={
            "base": resolved(model.base),
            "adapter": several or (resolved(adapter) if isinstance(adapter, str) else None),
        }
    )
    return config.model_copy(update={"model": changed})
