"""What can be asked for: `RunConfig` and its parts, from YAML, a dict or Python.

Every key is documented where it stands. A wrong key or value is a `RequestError` of one line.
"""

from __future__ import annotations

import json
import reprlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_origin

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from datainf_ray.common.errors import RequestError
from datainf_ray.common.keywords import Keywords
from datainf_ray.common.plain_yaml import MOST_CHARACTERS, PlainYAMLError, read_yaml
from datainf_ray.common.possible import below, kinds, possible
from datainf_ray.common.redaction import keep_secret, names_secret
from datainf_ray.common.regular import local_path, regular
from datainf_ray.common.storage import Options, reason, store_of
from datainf_ray.common.words import meant
from datainf_ray.influence.register import NAMES as METHODS

_STORES = ("s3", "gs", "az", "abfs", "https", "hdfs", "file")  # fsspec's protocols that are named in an error

_MOST = 2**53  # of a whole number: JSON's readers know no larger ones exactly
_LONGEST = 1e9  # seconds, 32 years: a clock takes no more
_SHOWN = 80  # characters of a wrong value

#: A key that changes neither a result nor its meaning: where work is done, where it is put, what is kept meanwhile.
Incidental = partial(Field, json_schema_extra={"incidental": True})
#: A key that is no more than the place of something that a run knows by its content.
Place = partial(Field, json_schema_extra={"place": True})

Auto = Union[Literal["auto"], Annotated[int, Field(ge=1)]]  # noqa: UP007 - pydantic evaluates it


class _Part(BaseModel):
    """A part of the configuration: unknown keys are refused, and so are values of another type.

    A run is known by its keys that are neither `Incidental` nor a `Place`, and differ from their defaults. So a key may
    be added, and an earlier run is still the same; but a default, once it is there, goes on to mean what it means.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """true is no number and 1 is not true, which pydantic would take; and no number is beyond what stays exact."""
        there = set(kinds(cls.model_fields[str(info.field_name)].annotation))
        fits = {bool: bool in there, bytes: False}.get(type(value), bool not in there or value is None)
        if not (fits or (isinstance(value, str) and str in there)):
            raise PydanticCustomError("another_kind", "another kind of value")
        if isinstance(value, int) and there & {int, float} and abs(value) > _MOST:
            raise ValueError(f"is beyond {_MOST:,}")
        return value


class ModelConfig(_Part):
    """The fine-tuned model: a base and a PEFT adapter."""

    base: str = Place(min_length=1, description="hub id, local path or fsspec URL of the base model")
    adapter: str = Place(min_length=1, description="hub id, local path or fsspec URL of the PEFT adapter's directory")
    task: str = Field(
        "causal-lm", min_length=1, description="what the model was trained for: a name, or package.module:TASK"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the base weights; auto: the checkpoint's own on a GPU, float32 on a CPU"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="bitsandbytes quantization of the base; needs a GPU"
    )
    trust_remote_code: bool = Field(False, description="run the Python code of the base model, or of a task of yours")
    chat_template: str | None = Place(None, min_length=1, description="a file, or a text; null: the tokenizer's own")
    chat_template_kwargs: Keywords = Field(default_factory=dict, description="variables for it; date: what today is")


class RowsConfig(_Part):
    """A set of rows: files, and which of their columns mean what."""

    path: str | tuple[str, ...] = Place(description="path, glob or list of them, on any fsspec filesystem")
    columns: dict[str, str] = Field(default_factory=dict, description="role: column or Jinja text; empty: own names")
    id: str | None = Field(None, description="column that names a row; default <file>#<row in file>")
    quoting: Literal["standard", "none"] = Field(
        "standard", description="of CSV and TSV files; none: quotes are part of the text, as in GLUE's .tsv files"
    )
    max_length: int | None = Field(None, ge=2, description="in tokens; longer rows are cut; default the model's own")
    targets: Literal["auto", "all", "completion", "assistant", "last-assistant"] = Field(
        "auto", description="tokens that have a loss; auto: the completion, the assistant's turns, all of a text"
    )

    @field_validator("path")
    @classmethod
    def _some_path(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or any(not p for p in value):
            raise ValueError("name at least one file")
        return value

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class QueriesConfig(RowsConfig):
    """The rows whose loss is to be explained."""

    group: str | None = Field(
        None, description="null: every row is a query; all: one query, the mean; a column: one query per value"
    )


class MethodConfig(_Part):
    """How influence is computed."""

    name: str = Field("datainf", description=f"one of {', '.join(METHODS)}")
    #: With gradients of 1e-18 to 1e9 scores are exact to 2e-7 at c from 1e-16 to 1e16; beyond, float32 ends somewhere.
    damping: float = Field(0.1, ge=1e-12, le=1e12, description="c in λ_l = c · mean‖g‖² / d_l")
    loss: Literal["mean", "sum"] = Field("mean", description="over an example's target tokens")
    curvature_rows: int | None = Field(None, ge=2, description="null: all rows; N: a seeded random sample of N")


class ClusterConfig(_Part):
    """Where the work is done, and in what portions."""

    address: str | None = Incidental(None, description="null: join the cluster at RAY_ADDRESS, else start a local one")
    min_workers: int = Incidental(0, ge=0, description="workers that must be up before the first sweep begins")
    max_workers: int | None = Incidental(
        None, ge=1, description="null: as many as the cluster has room for at the start"
    )
    start_timeout: float | None = Incidental(
        1800, gt=0, le=_LONGEST, description="seconds to wait, with no worker up, before the run fails; null: for ever"
    )
    checkpoint_seconds: float = Incidental(
        120, ge=0, le=_LONGEST, description="seconds between two checkpoints of a sweep's sums"
    )
    gpus_per_worker: int | None = Incidental(
        None, ge=0, description="null: 1 where a node that is up has a GPU, else 0; more: the model is spread over them"
    )
    cpus_per_worker: int = Incidental(1, ge=1, description="also the number of threads a worker computes with")
    label_selector: dict[str, str] = Incidental(
        default_factory=dict,
        description="labels of the nodes that workers may run on, as Ray's actors take them: value, !value, in(a, b)",
    )
    fallback_selector: dict[str, str] | None = Incidental(
        None, description="labels to ask for when there is no such node in time, as with spot machines; null: wait on"
    )
    fallback_after: float = Incidental(
        300, ge=0, le=_LONGEST, description="seconds to wait for a node before fallback_selector counts"
    )
    chunk_rows: Auto = Field("auto", description="rows in a chunk: the unit of work, of retry and of commit")
    batch_tokens: Auto = Field("auto", description="padded tokens in a batch; one longer row is a batch of its own")

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.max_workers is not None and self.min_workers > self.max_workers:
            raise RequestError("cluster.min_workers", self.min_workers, f"is more than max_workers, {self.max_workers}")
        if self.fallback_selector is not None and not self.label_selector:
            raise RequestError(
                "cluster.fallback_selector", self.fallback_selector, "has no effect without label_selector", "give both"
            )
        return self


class ResultsConfig(_Part):
    """What is written."""

    top_k: int = Field(100, ge=1, description="rows per query and direction in top.parquet")
    scores: bool = Field(True, description="write every row's influence on every query")
    blocks: bool = Field(False, description="write every row's influence on every query through every block")
    self_influence: bool = Field(False, description="write every row's influence on itself")
    most_bad_rows: float | None = Incidental(
        None, ge=0, le=1, description="share of rows without a score above which a run that is done fails; null: any"
    )


class RunConfig(_Part):
    """One run: which rows of `train` did what `queries` show?"""

    model: ModelConfig
    train: RowsConfig
    queries: QueriesConfig
    method: MethodConfig = Field(default_factory=MethodConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    gradients: Literal["auto", "recompute", "keep"] = Incidental("auto", description="what the second sweep reads")
    index: bool | str | None = Field(None, description="fsspec URL or true: write a gradient index for later queries")
    index_projection: int | None = Field(None, ge=1, description="per side of a block, in the index; null: as it is")
    index_dtype: Literal["float32", "bfloat16", "float16"] = Field("float16", description="of the gradient index")
    results: ResultsConfig = Field(default_factory=ResultsConfig)
    storage_options: dict[str, dict[str, Any]] = Incidental(
        default_factory=dict,
        exclude=True,  # credentials: in no run.json, report or log
        repr=False,
        description="by protocol (s3, gs, az): what fsspec opens it with; empty: the environment's credentials",
    )
    output: str = Incidental(min_length=1, description="the run directory: a path or fsspec URL")
    seed: int = Field(0, ge=0, description="of everything that is drawn at random")

    @field_validator("storage_options")
    @classmethod
    def _known_protocols(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for protocol in value:
            if protocol not in fsspec.available_protocols():
                raise RequestError("storage_options", protocol, "unknown protocol", meant(protocol, _STORES))
        return value

    @model_validator(mode="after")
    def _within_reach(self) -> RunConfig:
        """What the contract names and this version does not do yet is refused by name, never ignored."""
        later = {
            "method.name": (self.method.name, METHODS),
            "results.self_influence": (self.results.self_influence, (False,)),
        }
        for key, (value, choices) in later.items():
            if value not in choices:
                choice = " or ".join(json.dumps(p) for p in choices)
                raise RequestError(
                    key,
                    value if isinstance(value, str) else _shown(value),
                    "is not available in this version",
                    f"use {choice}",
                )
        return self

    @model_validator(mode="after")
    def _of_use(self) -> RunConfig:
        """What would have no effect here is a mistake."""
        if self.index_projection is not None and not self.index:
            raise RequestError(
                "index_projection", self.index_projection, "there is no index", "use index: true with it"
            )
        return self


def load_config(source: str | Path | dict[str, Any] | RunConfig, **overrides: Any) -> RunConfig:
    """A `RunConfig` from a YAML file (a path or any fsspec URL), a dict or another `RunConfig`.

    `overrides` replace keys: nested dicts are merged, and a key may be dotted (`{"cluster.max_workers": 2}`).
    A file in a store is opened with the `storage_options` among them.
    Raises `RequestError` with one line that names the key, its value and what would be right.
    """
    file = None
    if isinstance(source, RunConfig):
        tree: Any = source.model_dump(exclude_unset=True)
        if source.storage_options:  # which are in no dump
            tree["storage_options"] = source.storage_options
    elif isinstance(source, dict):
        tree = source
    else:
        file = str(source)
        tree = _read(file, options_among(overrides))
    keep_secret({"storage_options": tree.get("storage_options")})
    for key, value in overrides.items():
        tree = _replaced(tree, key.split("."), value, key)
    keep_secret({"storage_options": tree.get("storage_options")})  # before any of it could be named in an error
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, file) from None


def options_among(overrides: dict[str, Any]) -> Options:
    """The `storage_options` among what replaces a configuration's keys; {} where those are none."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        if key.partition(".")[0] == "storage_options":
            tree = _replaced(tree, key.split("."), value, key)
    given = tree.get("storage_options")
    return given if isinstance(given, dict) and all(isinstance(of, dict) for of in given.values()) else {}


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"cluster.max_workers=2"` as `("cluster.max_workers", 2)`; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError("--set", text, "is not KEY=VALUE", "an example is --set cluster.max_workers=2")
    try:
        return key.strip(), read_yaml(value)
    except RequestError:
        raise
    except PlainYAMLError as error:
        secret = key.strip().startswith("storage_options")
        raise RequestError("--set", key if secret else text, error.told(secret), error.remedy) from None


def _read(file: str, options: Options) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    text = ""
    try:
        if (local := local_path(file)) is not None:
            regular(local, "config")
        fs, path = store_of(file, options)
        with fs.open(path, "rt", encoding="utf-8") as opened:
            text = opened.read(MOST_CHARACTERS + 1)
        tree = read_yaml(text)
    except RequestError:
        raise
    except PlainYAMLError as error:
        line = text.splitlines()[error.line - 1 :][:1] if error.line is not None else []
        secret = any(map(names_secret, line))
        place = "" if error.line is None else f"line {error.line}: "
        raise RequestError("config", file, f"{place}{error.told(secret)}", error.remedy) from None
    except FileNotFoundError:
        raise RequestError("config", file, "no such configuration file") from None
    except Exception as error:  # every storage library has its own classes; or it is not UTF-8
        raise RequestError("config", file, f"cannot be read: {reason(error)}") from None
    if not isinstance(tree, dict):
        raise RequestError("config", file, "a configuration is a mapping of keys such as model, train, queries, output")
    return tree


def _replaced(tree: dict[str, Any], path: list[str], value: Any, whole: str) -> dict[str, Any]:
    head, rest = path[0], path[1:]
    old = tree.get(head)
    if isinstance(old, BaseModel):
        old = old.model_dump(exclude_unset=True)
    if rest:
        if old is not None and not isinstance(old, dict):
            raise RequestError(whole, None, f"{head} is no mapping and has no key {rest[0]!r}")
        value = _replaced(old or {}, rest, value, whole)
    elif isinstance(value, dict) and isinstance(old, dict):
        for key, inner in value.items():
            old = _replaced(old, [str(key)], inner, f"{whole}.{key}")
        value = old
    return {**tree, head: value}


def _explained(error: ValidationError, file: str | None) -> RequestError:
    """The first thing that is wrong with a configuration, which was read from `file`."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])  # a misspelt key explains the rest
    key, _, _ = _place(first)
    others = len({_place(e)[0] for e in errors} - {key})
    more = f" (and {others} more)" if others and first["type"] != "missing" else ""
    if first["type"] == "extra_forbidden":
        above, _, last = key.rpartition(".")
        return RequestError(key, None, "unknown key", f"{meant(last, _part(above).model_fields)}{more}", file)
    if first["type"] == "missing":
        return RequestError(key, None, "missing", f"it must be given{more}", file)
    # of a list, the element that is wrong: each of the alternatives is told for itself
    first = max((e for e in errors if _place(e)[0] == key), key=lambda e: len(_place(e)[1]))
    key, within, field = _place(first)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):  # a check across keys names them itself
        return RequestError(cause.key, cause.value, cause.problem, cause.remedy, file)
    named = ".".join([key, *map(str, within)])
    value = None if not key or key.startswith("storage_options") else _shown(first["input"])
    if first["type"] == "value_error":
        return RequestError(named or "config", value, f"{cause}{more}", source=file)
    annotation, metadata = (RunConfig, ()) if field is None else (field.annotation, field.metadata)
    for step in within:
        annotation, metadata = below(annotation, step), ()
    return RequestError(named or "config", value, f"{possible(annotation, metadata)}{more}", source=file)


def _place(error: ErrorDetails) -> tuple[str, list[str | int], FieldInfo | None]:
    """The key that an error is about, the way from there into its value, and the key's field, if there is one."""
    part: type[BaseModel] = RunConfig
    names, rest, field = [], list(error["loc"]), None
    while rest:
        field = part.model_fields.get(str(rest[0]))
        names.append(str(rest.pop(0)))
        inner = None if field is None else _model(field)
        if inner is None:
            break
        part = inner
    alternatives = [] if field is None else [kind for kind in kinds(field.annotation) if kind is not type(None)]
    if rest and len(alternatives) > 1:  # pydantic names the alternative first
        rest = rest[1:]
    return ".".join(names), [step for step in rest if step != "[key]"], field


def _model(field: FieldInfo) -> type[BaseModel] | None:
    kind: Any = field.annotation
    is_class = isinstance(kind, type) and get_origin(kind) is None  # Python 3.10 takes dict[str, str] for a class
    return kind if is_class and issubclass(kind, BaseModel) else None


def _part(key: str) -> type[BaseModel]:
    """The part of the configuration at `key`; the whole at an empty one."""
    field = RunConfig.model_fields.get(key)
    return (field and _model(field)) or RunConfig


def _shown(value: Any) -> Any:
    """A value as an error shows it: as it would be written in YAML, and not at great length."""
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= _SHOWN else f"'{value[: _SHOWN - 1]}…'"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return value
    if isinstance(value, int):  # Python writes no number of more than 4,300 digits
        return value if abs(value) < 10**30 else "a number of more than 30 digits"
    return reprlib.repr(value)[:_SHOWN]
