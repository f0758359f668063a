"""A request for more queries, understood: they are answered from the gradient index of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch

from datainf_ray.common.errors import RequestError
from datainf_ray.config import MethodConfig, RunConfig, load_config
from datainf_ray.corpus.beside import known_corpus
from datainf_ray.corpus.chunks import Chunk, Segment
from datainf_ray.corpus.tokens import ENCODING
from datainf_ray.influence.folds import Statistics
from datainf_ray.influence.register import method_named
from datainf_ray.model.files import adapter_folder
from datainf_ray.model.inspect import load_tokenizer
from datainf_ray.model.limits import traces
from datainf_ray.request.encoding import first_rows
from datainf_ray.request.groups import query_groups
from datainf_ray.request.job import METHOD_KEYS, Job, Source, check_extent, facts_for, let_go, require_effect
from datainf_ray.request.places import check_places, model_places
from datainf_ray.request.template import with_day, with_template
from datainf_ray.request.understand import absolute, begun, index_directory
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import Index, open_index
from datainf_ray.runs.places import place_of
from datainf_ray.runs.results import Run
from datainf_ray.tasks.register import task_for, task_for_rows


@dataclass(frozen=True)
class IndexJob(Job):
    """New queries, answered from the gradient index of a finished run: no training row is looked at."""

    run: str  # the run's URL
    held: Index  # what the index holds
    place: RunDirectory  # where it lies
    part_rows: int  # rows in each of its parts, but for the last one
    made: pa.Table  # the run's blocks.parquet

    source: ClassVar[Source] = "index"

    @property
    def rows(self) -> int:
        return self.held.rows

    @property
    def train_digest(self) -> str:
        return self.held.fingerprint

    @property
    def chunk_rows(self) -> int:
        return self.part_rows

    def chunks(self, chunk_rows: int) -> list[Chunk]:
        """The index's parts; their rows are not looked for in any file."""
        rows, step = self.rows, self.part_rows
        return [
            Chunk(number, first, (Segment(0, first, min(first + step, rows)),))
            for number, first in enumerate(range(0, rows, step))
        ]

    @property
    def sampled_rows(self) -> None:
        return None

    @property
    def index(self) -> RunDirectory:
        return self.place

    @property
    def written_index(self) -> None:
        return None

    @property
    def index_owner(self) -> str | None:
        return self.held.owner

    @property
    def projection(self) -> tuple[int, int] | None:
        return None if self.held.projection is None else (self.held.projection, self.held.seed)

    @property
    def known(self) -> Statistics:
        """The run's own; no block has one where its method had none."""
        dampings = self.held.damping or {}
        return {block: {"damping": torch.tensor(value, dtype=torch.float64)} for block, value in dampings.items()}

    @property
    def blocks(self) -> pa.Table:
        return self.made

    @property
    def not_kept(self) -> str:
        return "gradients are read from the index"

    @property
    def earlier(self) -> dict[str, str]:
        return {"run": self.run, "index": self.place.url}


def prepare_query(run: Run, config: RunConfig, meanwhile: Callable[[], None] = lambda: None) -> IndexJob:
    """Understand a request to answer the queries of `config` from the gradient index of `run`.

    `meanwhile` is called when the quick checks are done and the slow ones begin, unless the output holds a run. The
    training rows need not be there any more. Raises `RequestError` where the run has no index, is not done, or
    where its index was made by another model.
    """
    options = config.storage_options
    made = load_config(run.config, output=run.url, storage_options=options)  # it may have been moved since
    place = index_directory(made)
    if place is None:
        raise RequestError("run", run.url, "has no gradient index", "run it with index: true to ask it more queries")
    if config.results.self_influence:
        problem, remedy = "does not depend on queries", f"ask for it in the run itself, {run.url}"
        raise RequestError("results.self_influence", "true", problem, remedy)
    if config.results.tokens:
        problem = "the index has gradients and no rows, whose tokens could be looked at"
        raise RequestError("results.tokens", "true", problem, f"ask for it in the run itself, {run.url}")
    made_by = run.record
    sizes = made_by.sizes
    if made_by.state != "done" or sizes is None:
        raise RequestError("run", run.url, f"is {made_by.state!r}", "its gradient index is complete once it is done")
    index = open_index(place, sizes.chunk_rows)
    if method_named(config.method.name).damped and index.damping is None:
        name = run.config["method"]["name"]
        raise RequestError("method.name", config.method.name, f"{run.url} was {name} and knows no damping")
    method, made_with = config.method.name, run.config["method"]["name"]
    if method_named(method).states != method_named(made_with).states:
        held = "hidden states" if method_named(made_with).states else "gradients"
        raise RequestError("method.name", method, f"the index of {run.url} holds {held}, of {made_with}")
    check_changes(config.method, made.method, run.url)
    factor = config.method.damping / made.method.damping
    directory = RunDirectory(config.output, options=options)
    config = with_template(absolute(config))
    task = task_for(config)
    queries = known_corpus(config.queries, task_for_rows(config, "queries"), "queries", options)
    if queries.kind != task.makes and config.diffusion.generate == made.diffusion.generate:
        without = config.diffusion.model_copy(update={"generate": None})  # the run's own queries were made; these not
        config = config.model_copy(update={"diffusion": without})
        task = task_for(config)
    read = [place_of(run.url, "run", options), place_of(place.url, "run", options)]
    rows = {"queries": (config.queries.paths, queries)}
    check_places(directory, None, [*read, *model_places(config.model, options)], rows)
    if not begun(directory):
        meanwhile()
    facts = facts_for(config, task)
    if facts.blocks != index.blocks:
        raise RequestError("model.adapter", config.model.adapter, f"is not the one that {run.url} was made with")
    tokenizer = load_tokenizer(config.model, options, task)
    limits = traces(adapter_folder(config.model, options), tokenizer) if task.inspect is None else ()
    config = with_day(config, tokenizer, {"queries": queries}, directory)
    task.check(queries, facts.task, "queries")
    examples = {"queries": first_rows(config, "queries", queries, facts, tokenizer)}
    if task.draws is not None:
        let_go(examples, task, {"queries": queries})
    groups, names = query_groups(config, queries)
    job = IndexJob(
        config,
        directory,
        facts,
        {"queries": queries},
        examples,
        groups,
        names,
        run.url,
        index if index.damping is None else replace(index, damping={k: factor * x for k, x in index.damping.items()}),
        place,
        sizes.chunk_rows,
        _scaled(run.blocks(), factor),
        traces=limits,
    )
    check_extent(job)
    for part in ("adapter", "base"):
        if job.identity[part] != made_by.identity.get(part):
            raise RequestError(f"model.{part}", getattr(config.model, part), f"has changed since {run.url} was made")
    if made_by.identity.get("encoding", 1) != ENCODING:
        problem = "was made by an earlier version, which made other tokens of the same rows"
        raise RequestError("run", run.url, problem, "run it again to ask it more queries")
    if job.identity.get("task") != made_by.identity.get("task"):
        raise RequestError("model.task", config.model.task, f"its code has changed since {run.url} was made")
    job.check_output()
    return job


def check_changes(asked: MethodConfig, made: MethodConfig, url: str) -> None:
    """Raises `RequestError` where a key of the method is another than in the run at `url`, and can mean nothing here.

    What the run has is no mistake, whatever the method is now.
    """
    changed = [key for key in type(asked).model_fields if getattr(asked, key) != getattr(made, key)]
    if "loss" in changed and not method_named(asked.name).states:
        raise RequestError("method.loss", asked.loss, f"the index of {url} holds gradients of {made.loss} losses")
    if "curvature_rows" in changed and asked.curvature_rows is not None:
        problem = "has no effect: the curvature is that of all rows of the index"
        raise RequestError("method.curvature_rows", asked.curvature_rows, problem, "use null")
    for key in METHOD_KEYS:
        if key in changed:
            require_effect(asked, key)


def _scaled(blocks: pa.Table, factor: float) -> pa.Table:
    """A run's blocks.parquet with so many times its dampings."""
    if factor == 1:
        return blocks
    at = blocks.schema.get_field_index("damping")
    return blocks.set_column(at, blocks.schema.field(at), pc.multiply(blocks["damping"], factor))
