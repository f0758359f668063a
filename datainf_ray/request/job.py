"""A request, understood: everything that can be checked before a worker is asked for.

`prepare` reads metadata, headers and a few rows, and no weights. What it gives is enough to plan the run and start it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted
from datainf_ray.config import MethodConfig, RunConfig
from datainf_ray.corpus.chunks import Chunk, Corpus
from datainf_ray.corpus.tokens import ENCODING, Example
from datainf_ray.influence.folds import Statistics
from datainf_ray.influence.method import Extent, Method, Settings
from datainf_ray.influence.projection import projected_size
from datainf_ray.influence.register import NAMES, method_named
from datainf_ray.model.files import adapter_folder
from datainf_ray.model.inspect import ModelFacts, inspect_model, load_tokenizer
from datainf_ray.model.limits import Trace, traces
from datainf_ray.model.sense import StartLoss, chance
from datainf_ray.model.states import state_block
from datainf_ray.request.cuts import hints
from datainf_ray.request.encoding import first_rows, rows_of
from datainf_ray.request.groups import query_groups
from datainf_ray.request.identity import adapter_digest, base_digest, settings, text_digest
from datainf_ray.request.output import check_output
from datainf_ray.request.sampled import Looked, looked_at
from datainf_ray.request.seen import SeenRow, seen
from datainf_ray.request.template import with_day, with_template
from datainf_ray.request.understand import Request, index_directory, understand
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import OK
from datainf_ray.tasks import own
from datainf_ray.tasks.register import own_code, task_for
from datainf_ray.tasks.task import Task

Source = Literal["backward", "index"]  #: where the gradients of training rows come from


@dataclass(frozen=True)
class Job:
    """What is to be done, with every name resolved and every check passed: a run over the rows of a corpus."""

    config: RunConfig
    directory: RunDirectory
    facts: ModelFacts
    corpora: dict[str, Corpus]  # train, queries
    examples: dict[str, list[Example]]  # some rows of each, the first ones as a rule
    groups: np.ndarray  # for every row of the queries, the number of its query
    names: list[str] | None  # of the queries; None: they are called by their rows' ids
    traces: tuple[Trace, ...] = field(default=(), kw_only=True)  # of the limit that the training had for its rows
    row: SeenRow | None = field(default=None, kw_only=True)  # a training row as the model sees it

    source: ClassVar[Source] = "backward"

    @property
    def method(self) -> Method:
        return method_named(self.config.method.name)

    @property
    def attributed(self) -> str:
        """What influence is computed from, for a person."""
        facts = self.facts
        if self.method.states:
            return f"each row's last hidden state, {facts.parameters:,} numbers, and no gradient"
        every = "all " if self.config.model.blocks is None else ""
        return f"{counted(len(facts.blocks), 'block')} with {every}{facts.parameters:,} trainable parameters"

    @cached_property
    def task(self) -> Task:
        """What the model is trained for."""
        return task_for(self.config)

    @cached_property
    def task_code(self) -> own.TaskCode | None:
        """The code of a task of the user's own; None for one of ours."""
        return own_code(self.config.model)

    @property
    def rows(self) -> int:
        """The number of training rows."""
        return self.corpora["train"].rows

    @property
    def train_digest(self) -> str:
        """What the training rows are known by."""
        return self.corpora["train"].fingerprint()

    @property
    def queries(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def chunk_rows(self) -> int | None:
        """Rows in a chunk of the training rows, where nobody has to choose."""
        asked = self.config.cluster.chunk_rows
        return None if asked == "auto" else asked

    def chunks(self, chunk_rows: int) -> list[Chunk]:
        """The training rows in chunks."""
        return self.corpora["train"].chunks(chunk_rows)

    @property
    def sampled_rows(self) -> int | None:
        """How many rows the curvature is taken from, where those are not all."""
        asked = self.config.method.curvature_rows
        return asked if asked is not None and asked < self.rows else None

    @property
    def settings(self) -> Settings:
        """What the method's program is asked."""
        asked, side = self.config.method, None if self.projection is None else self.projection[0]
        return Settings(
            asked.damping,
            sampled=self.sampled_rows is not None,
            tolerance=asked.tolerance,
            iterations=asked.iterations,
            scale=asked.scale,
            seed=self.config.seed,
            self_influence=self.config.results.self_influence,
            rows=self.rows,
            curvature_rows=self.sampled_rows or self.rows,
            sizes={block.name: projected_size(block, side) for block in self.facts.blocks},
        )

    def extent(self, groups: Sequence[tuple[int, int]]) -> Extent:
        """What the method's program has to go over, with the queries in `groups`."""
        known = self.known is not None
        return Extent(self.rows, groups, self.sampled_rows, known=known, settings=self.settings)

    @property
    def index(self) -> RunDirectory | None:
        """Where the gradient index is read from or written to; None where there is none."""
        return index_directory(self.config)

    @property
    def written_index(self) -> RunDirectory | None:
        """Where this run writes a gradient index; None where it writes none."""
        return self.index

    @property
    def index_owner(self) -> str | None:
        """The fingerprint that the index' parts hold; None where they are an older version's, which hold none."""
        return self.fingerprint

    @property
    def projection(self) -> tuple[int, int] | None:
        """Side and seed of the projection that training gradients come through; None where they come as they are."""
        return None

    @property
    def known(self) -> Statistics | None:
        """The blocks' `damping`, where it is known before any sweep."""
        return None

    @property
    def blocks(self) -> pa.Table | None:
        """blocks.parquet, where it is known before any sweep."""
        return None

    @property
    def not_kept(self) -> str | None:
        """Why training gradients are not kept between sweeps, where there is no question of it."""
        return None

    @property
    def earlier(self) -> dict[str, str] | None:
        """The run, and its index, that answer this one's queries: `run` and `index`, two URLs."""
        return None

    @property
    def looked(self) -> dict[str, Looked]:
        """What was seen of `examples`, by corpus."""

        def told(name: str, examples: list[Example]) -> tuple[str, ...]:
            return hints(name, rows_of(self.config, name), self.facts, self.traces, examples)

        return {
            name: looked_at(examples, self.corpora[name], told(name, examples))
            for name, examples in self.examples.items()
        }

    @property
    def sample(self) -> tuple[Example, ...]:
        """Some real rows, for comparing gradients with autograd; see `rows_to_compare`."""
        return rows_to_compare(whole(self.examples, self.task, self.corpora))

    @property
    def making(self) -> str | None:
        """What is made before the queries are swept, for a person; None where nothing is."""
        asked = self.config.diffusion.generate
        if not self.makes or asked is None:
            return None
        pictures = counted(self.corpora["queries"].rows, "picture")
        are = "is" if self.corpora["queries"].rows == 1 else "are"
        return f"{pictures} {are} made first, of the queries' prompts, in {counted(asked.steps, 'step')} each"

    @property
    def makes(self) -> bool:
        """Whether the queries are prompts, of which the model makes pictures first."""
        return self.corpora["queries"].kind == self.task.makes

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this run this run, part by part: the settings that matter, and the content of model and rows."""
        model, options = self.config.model, self.config.storage_options
        return {
            **({} if self.task_code is None else {"task": self.task_code.digest}),
            **({} if model.chat_template is None else {"chat_template": text_digest(model.chat_template)}),
            "encoding": ENCODING,
            "settings": settings(self.config),
            "adapter": adapter_digest(adapter_folder(model, options)),
            "base": base_digest(model.base, options),
            "train": self.train_digest,
            "queries": self.corpora["queries"].fingerprint(),
        }

    def check_output(self) -> None:
        """Raises `RequestError` where output or index cannot be written, or hold another run."""
        check_output(self.directory, self.written_index, self.identity, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def rows_to_compare(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Of the usable rows the shortest and the longest, on either side of any length at which a model does otherwise;
    and two of the same length, if there are, the shortest such. Shortest first.
    """
    usable = sorted((e for e in examples if e.status == OK), key=lambda example: example.tokens)
    last = len(usable) - 1
    twins = next((k for k in range(last) if usable[k].lengths == usable[k + 1].lengths), None)
    chosen = {0, last} | (set() if twins is None else {twins, twins + 1})
    return tuple(usable[k] for k in sorted(chosen) if 0 <= k <= last)


def whole(examples: dict[str, list[Example]], task: Task, corpora: dict[str, Corpus]) -> list[Example]:
    """The examples without queries whose pictures are not made yet; with them where there are no others."""
    known = [e for name, some in examples.items() if corpora[name].kind != task.makes for e in some]
    return known or [e for some in examples.values() for e in some]


def let_go(examples: dict[str, list[Example]], task: Task, corpora: dict[str, Corpus]) -> None:
    """Drop the values of all rows but those that are compared: 128 pictures may be some hundred megabytes."""
    kept = {id(example) for example in rows_to_compare(whole(examples, task, corpora))}
    for example in (example for some in examples.values() for example in some):
        if id(example) not in kept:
            example.values = {}


def doubt_of(job: Job, loss: StartLoss | None) -> str | None:
    """What the loss at the start says against the adapter's belonging to base and rows; None where nothing."""
    return None if loss is None else loss.doubt(chance(job.facts.vocabulary, job.facts.task.get("num_labels")))


def prepare(config: RunConfig, writable: bool = True) -> Job:
    """Understand and check a request. Raises `RequestError`; touches neither weights nor cluster.

    With `writable`, the output is tried as well, and what a run there before was is compared.
    """
    return complete(understand(config), writable)


def complete(request: Request, writable: bool = True) -> Job:
    """The slower part of `prepare`, which loads libraries and looks at the model and at some rows."""
    config, corpora = with_template(request.config), request.corpora
    check_method(config)
    task = task_for(config)
    facts = facts_for(config, task)
    tokenizer = load_tokenizer(config.model, config.storage_options, task)
    limits = traces(adapter_folder(config.model, config.storage_options), tokenizer) if task.inspect is None else ()
    config = with_day(config, tokenizer, corpora, request.directory)
    examples = {}
    for name, corpus in corpora.items():
        task.check(corpus, facts.task, name)
        examples[name] = first_rows(config, name, corpus, facts, tokenizer)
    facts = replace(facts, notes=(*facts.notes, *task.tells(facts.task, corpora["train"])))
    groups, names = query_groups(config, corpora["queries"])
    usable = next(example for example in examples["train"] if example.status == OK)
    row = seen(usable, tokenizer, "train")
    if task.draws is not None:
        let_go(examples, task, corpora)
    job = Job(config, request.directory, facts, corpora, examples, groups, names, traces=limits, row=row)
    check_extent(job)
    if writable:
        job.check_output()
    return job


def facts_for(config: RunConfig, task: Task) -> ModelFacts:
    """The facts of the model, with the blocks that the method takes. Raises `RequestError`."""
    facts = inspect_model(config.model, task, config.storage_options)
    if not method_named(config.method.name).states:
        return facts
    if task.draws is not None:
        problem = f"takes a hidden state at a row's last token, and {task.name} has none"
        raise RequestError("method.name", config.method.name, problem, "use another method")
    if config.model.blocks is not None:
        problem = f"has no effect on {config.method.name}, which looks at no gradient"
        raise RequestError("model.blocks", config.model.blocks, problem, "use null")
    return replace(facts, blocks=(state_block(facts.hidden_size),))


#: What belongs to some methods only.
METHOD_KEYS = ("tolerance", "iterations", "scale")


def check_method(config: RunConfig) -> None:
    """What would have no effect on the method that is asked for is a mistake."""
    asked, method = config.method, method_named(config.method.name)
    if asked.curvature_rows is not None and not method.damped:
        raise RequestError("method.curvature_rows", asked.curvature_rows, f"{asked.name} has no curvature", "use null")
    for key in METHOD_KEYS:
        require_effect(asked, key)
    if config.results.self_influence and not method.self_influence:
        those = " or ".join(name for name in NAMES if method_named(name).self_influence)
        raise RequestError("results.self_influence", "true", f"{asked.name} has none", f"use {those}")
    if config.results.tokens:
        check_tokens(config)


def require_effect(asked: MethodConfig, key: str) -> None:
    """Raises `RequestError` where one of `METHOD_KEYS` is given and means nothing to the method."""
    value = getattr(asked, key)
    if key not in method_named(asked.name).keys and value != type(asked).model_fields[key].default:
        those = " and ".join(name for name in NAMES if key in method_named(name).keys)
        raise RequestError(f"method.{key}", value, f"has no effect on {asked.name}", f"it belongs to {those}")


def check_tokens(config: RunConfig) -> None:
    """Raises `RequestError` where influence is no sum over a row's tokens."""
    if not method_named(config.method.name).additive:
        those = " or ".join(name for name in NAMES if method_named(name).additive)
        problem = f"{config.method.name} divides by the row's own norm: its influence is no sum over tokens"
        raise RequestError("results.tokens", "true", problem, f"use {those}")
    task = task_for(config)
    if task.token_losses is None:
        problem = f"task {task.name} has a loss for each row, and none for each token"
        raise RequestError("results.tokens", "true", problem, "leave it out; it is for causal-lm and seq2seq-lm")


def check_extent(job: Job) -> None:
    """Raises `RequestError` where the method makes no sense for so much."""
    refused = job.method.refuses(job.extent(((0, job.queries),)))
    if refused is not None:
        raise RequestError("method.name", job.config.method.name, *refused)
