"""A request, understood: everything that can be checked before a worker is asked for.

`prepare` reads metadata, headers and a few rows, and no weights. What it gives is enough to plan the run and start it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datainf_ray.config import RunConfig
from datainf_ray.corpus.chunks import Chunk, Corpus, plan_corpus
from datainf_ray.corpus.labels import check_labels
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.tokens import Encoder, Example
from datainf_ray.errors import RequestError
from datainf_ray.model.files import is_remote, listing_digest, local_folder
from datainf_ray.model.inspect import ModelFacts, adapter_folder, inspect_model, load_tokenizer
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import OK

_SAMPLE_ROWS = 64  # rows that are looked at to learn how long they are and whether any can be used
_HASHED = 64 * 2**20  # bytes; files of a model up to this size are known by all of their content
_PIECES, _PIECE = 256, 64 * 2**10  # larger ones by so many pieces of so many bytes, and their size

#: What changes neither a result nor its meaning: where the work is done and where it is put.
_INCIDENTAL = {
    "output": ...,
    "cluster": {"address", "min_workers", "max_workers", "gpus_per_worker", "cpus_per_worker"},
}


@dataclass(frozen=True)
class Job:
    """What is to be done, with every name resolved and every check passed."""

    config: RunConfig
    directory: RunDirectory
    facts: ModelFacts
    corpora: dict[str, Corpus]  # train, queries
    examples: dict[str, list[Example]]  # the first rows of each
    groups: np.ndarray  # for every row of the queries, the number of its query
    names: list[str] | None  # of the queries; None: they are called by their rows' ids

    @property
    def queries(self) -> int:
        return int(self.groups.max()) + 1

    def chunks(self, corpus: str) -> list[Chunk]:
        return self.corpora[corpus].chunks(self.config.cluster.chunk_rows)

    @property
    def sample(self) -> tuple[Example, ...]:
        """Two real rows, of different lengths where there are, for comparing gradients with autograd."""
        usable = [e for name in ("train", "queries") for e in self.examples[name] if e.status == OK]
        usable.sort(key=lambda example: example.tokens)
        return tuple(usable[k] for k in sorted({0, len(usable) // 2}) if k < len(usable))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this run this run, part by part: the settings that matter, and the content of model and rows."""
        return {
            "settings": _settings(self.config),
            "adapter": _folder_digest(adapter_folder(self.config.model)),
            "base": _base_digest(self.config.model.base),
            "train": self.corpora["train"].fingerprint(),
            "queries": self.corpora["queries"].fingerprint(),
        }

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def prepare(config: RunConfig, writable: bool = True) -> Job:
    """Understand and check a request. Raises `RequestError`; touches neither weights nor cluster.

    With `writable`, the output is tried as well, and what a run there before was is compared.
    """
    directory = RunDirectory(config.output)
    config = _absolute(config)
    corpora = {
        "train": plan_corpus(config.train, config.model.task, "train"),
        "queries": plan_corpus(config.queries, config.model.task, "queries"),
    }
    facts = inspect_model(config.model)
    tokenizer = load_tokenizer(config.model)
    examples = {}
    for name, corpus in corpora.items():
        if facts.num_labels is not None:
            check_labels(corpus, facts.num_labels, facts.label2id, name)
        examples[name] = _first(encoder_for(config, name, corpus, facts, tokenizer), corpus, config)
    groups, names = _groups(config, corpora["queries"])
    job = Job(config, directory, facts, corpora, examples, groups, names)
    if writable:
        _check_output(job)
    return job


def encoder_for(config: RunConfig, name: str, corpus: Corpus, facts: ModelFacts, tokenizer: Any) -> Encoder:
    """What turns the rows of one of the two corpora into examples; the same on the driver and on every worker."""
    asked = (config.train if name == "train" else config.queries).max_length
    limit = min((n for n in (asked, facts.max_length) if n is not None), default=None)
    if tokenizer is None and corpus.kind != "tokens":
        raise RequestError(f"model.base: {config.model.base}: has no tokenizer, and {name}.columns are not input_ids")
    return Encoder(
        tokenizer=tokenizer,
        kind=corpus.kind,
        task=config.model.task,
        max_length=limit,
        num_labels=facts.num_labels,
        label2id=facts.label2id,
        vocab_size=facts.vocabulary or None,
    )


def _absolute(config: RunConfig) -> RunConfig:
    """Local paths of the model as absolute ones: a worker's working directory is another."""

    def resolved(reference: str) -> str:
        path = Path(reference).expanduser()
        return str(path.resolve()) if "://" not in reference and path.is_dir() else reference

    model = config.model
    changed = model.model_copy(update={"base": resolved(model.base), "adapter": resolved(model.adapter)})
    return config.model_copy(update={"model": changed})


def _first(encoder: Encoder, corpus: Corpus, config: RunConfig) -> list[Example]:
    reader = RowReader(corpus)
    try:
        return encoder.encode(reader.read(corpus.chunks(min(_SAMPLE_ROWS, corpus.rows))[0]))
    finally:
        reader.close()


def _groups(config: RunConfig, corpus: Corpus) -> tuple[np.ndarray, list[str] | None]:
    """For every query row its query's number, and the queries' names where they are not the rows' own."""
    group = config.queries.group
    if group is None:
        return np.arange(corpus.rows), None
    if group == "all":
        return np.zeros(corpus.rows, dtype=np.int64), ["all"]
    numbers: dict[str, int] = {}
    reader = RowReader(corpus)
    try:
        groups = [
            numbers.setdefault("null" if row.group is None else row.group, len(numbers))
            for chunk in corpus.chunks(config.cluster.chunk_rows)
            for row in reader.read(chunk)
        ]
    finally:
        reader.close()
    return np.array(groups, dtype=np.int64), list(numbers)


def _settings(config: RunConfig) -> dict[str, Any]:
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


_PLACES = {("model", "base"), ("model", "adapter"), ("train", "path"), ("queries", "path")}


def _base_digest(base: str) -> str:
    """The base's digest. One in a store is known by what the store says of it: its weights are not on the driver."""
    if is_remote(base):
        return listing_digest(base, "model.base")
    return _folder_digest(local_folder(base, "model.base"))


def _folder_digest(folder: str) -> str:
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


def _check_output(job: Job) -> None:
    """The output can be written, and if there is a run already, it is this one."""
    directory = job.directory
    try:
        there = directory.read_json("run.json")
    except FileNotFoundError:
        there = None
    except ValueError:
        raise RequestError(f"output: {directory.path('run.json')} is not a run of ours; use another output") from None
    except Exception:  # every storage library has its own classes; check_writable says what is wrong
        there = None
    directory.check_writable()
    if there is not None and there.get("fingerprint") != job.fingerprint:
        raise RequestError(
            f"output: {directory.url} holds another run: {_difference(there.get('identity') or {}, job.identity)}; "
            "use another output, or remove that one"
        )


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
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
