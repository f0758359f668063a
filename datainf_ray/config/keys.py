"""What can be asked for: `RunConfig` and its parts. Every key is documented where it stands."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Union

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from datainf_ray.common.errors import RequestError
from datainf_ray.common.keywords import Keywords
from datainf_ray.common.possible import kinds
from datainf_ray.common.words import meant
from datainf_ray.influence.register import NAMES as METHODS

_STORES = ("s3", "gs", "az", "abfs", "https", "hdfs", "file")  # fsspec's protocols that are named in an error

LEAST_WEIGHT, MOST_WEIGHT = 1e-30, 1e30  #: of a checkpoint: learning rates and more

PICTURES = "text-to-image"  #: the task that `diffusion` belongs to

_MOST = 2**53  # of a whole number: JSON's readers know no larger ones exactly
_LONGEST = 1e9  # seconds, 32 years: a clock takes no more

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
    """The fine-tuned model: a base and a PEFT adapter; or a base that was trained itself."""

    base: str = Place(min_length=1, description="hub id, local path or fsspec URL of the base model")
    adapter: str | tuple[str, ...] | None = Place(
        description="hub id, path or fsspec URL of the PEFT adapter's directory; null: the base was trained itself; "
        "a list: checkpoints of one fine-tune, a run for each, and the weighted sum of their influences",
    )
    adapter_weights: tuple[Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)], ...] | None = Field(
        None, description="of a list of adapters, a weight for each, its learning rate say; null: 1 for each"
    )
    blocks: tuple[str, ...] | None = Field(
        None,
        description="patterns of the blocks that count, ! before what does not; null: all that the adapter trained",
    )
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
    lora_alpha: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="text-to-image: where a LoRA file does not say it; null: the file's, or its rank",
    )
    chat_template: str | None = Place(None, min_length=1, description="a file, or a text; null: the tokenizer's own")
    chat_template_kwargs: Keywords = Field(default_factory=dict, description="variables for it; date: what today is")

    @field_validator("adapter")
    @classmethod
    def _some_adapter(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        """A list of one is that one."""
        if value is not None and (not value or any(not one for one in value)):
            raise ValueError("name an adapter, or several")
        if isinstance(value, tuple) and (twice := next((one for one in value if value.count(one) > 1), None)):
            raise ValueError(f"names {twice} twice")
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    @field_validator("blocks")
    @classmethod
    def _some_blocks(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or any(not pattern.removeprefix("!") for pattern in value)):
            raise ValueError("name at least one block, or give null")
        return value

    @model_validator(mode="after")
    def _blocks_are_named(self) -> ModelConfig:
        if self.adapter is None and self.blocks is None:
            raise RequestError(
                "model.adapter", "null", "needs model.blocks", 'give a PEFT adapter; or blocks: ["*"], all of the base'
            )
        if self.adapter is None and self.quantization is not None:
            raise RequestError("model.quantization", self.quantization, "no weights of a quantized model are trained")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> ModelConfig:
        weights, adapters = self.adapter_weights, self.adapter
        if weights is None:
            return self
        given = f"[{', '.join(f'{weight:g}' for weight in weights)}]"
        if not isinstance(adapters, tuple):
            problem, remedy = "has no effect on one adapter", "give it with a list of adapters"
            raise RequestError("model.adapter_weights", given, problem, remedy)
        if len(weights) != len(adapters):
            problem = f"has {len(weights)} for {len(adapters)} adapters"
            raise RequestError("model.adapter_weights", given, problem, "give one for each")
        return self

    @property
    def one_adapter(self) -> str | None:
        """The adapter of a run: where a list is asked for, each of its runs has one (`request.checkpoints`)."""
        assert not isinstance(self.adapter, tuple)
        return self.adapter


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
    are: Literal["mistakes", "right"] | None = Incidental(
        None,
        description="mistakes: the report asks first who taught them; right: who harms them; null: by their loss",
    )


class MethodConfig(_Part):
    """How influence is computed."""

    name: str = Field("datainf", description=f"one of {', '.join(METHODS)}")
    #: With gradients of 1e-18 to 1e9 scores are exact to 2e-7 at c from 1e-16 to 1e16; beyond, float32 ends somewhere.
    damping: float = Field(0.1, ge=1e-12, le=1e12, description="c in λ_l = c · mean‖g‖² / d_l")
    loss: Literal["mean", "sum"] = Field("mean", description="over an example's target tokens")
    curvature_rows: int | None = Field(None, ge=2, description="null: all rows; N: a seeded random sample of N")
    tolerance: float = Field(1e-6, ge=1e-12, le=0.1, description="exact: of conjugate gradient's relative residual")
    iterations: int | None = Field(
        None, ge=1, le=10_000, description="exact: the most sweeps; lissa: steps; null: what is needed, 10 for lissa"
    )
    scale: float | None = Field(
        None, ge=1e-30, le=1e30, description="lissa: of the series; null: from each block's largest eigenvalue"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise RequestError("method.name", value, "unknown method", meant(value, METHODS))
        return value


class GenerateConfig(_Part):
    """text-to-image: how the pipeline makes the pictures of queries that are prompts alone, before they are queries."""

    steps: int = Field(30, ge=1, le=1000, description="of denoising, by the pipeline's own scheduler")
    guidance: float | None = Field(None, ge=0, le=100, description="its scale; null: what the pipeline takes by itself")
    seed: int = Field(0, ge=0, description="with a query row's id it gives the noise that its picture begins as")


class DiffusionConfig(_Part):
    """text-to-image: the draws at which a picture's loss is taken, and what of the picture the model sees."""

    timesteps: Annotated[int, Field(ge=1, le=1000)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        6, description="how many, evenly spaced; or a list of them"
    )
    noise: Literal["row", "shared"] = Field(
        "row", description="row: drawn by the row's id; shared: the same draws for every row"
    )
    combine: Literal["paired", "mean"] = Field(
        "paired", description="paired: the draws' gradients side by side, equal timesteps meet; mean: their mean"
    )
    resolution: int | None = Field(None, ge=8, le=8192, description="pixels on each side; null: the pipeline's own")
    crop: Literal["center", "none"] = Field(
        "center", description="center: the middle of a picture; none: all of it, squeezed into a square"
    )

    generate: GenerateConfig | None = Field(
        None, description="queries are prompts alone, and the pipeline makes their pictures first; null: they have some"
    )
    min_snr_gamma: float | None = Field(
        None, gt=0, le=1e6, description="γ of Min-SNR weights, as in the training; null: every timestep weighs the same"
    )
    noise_offset: float | None = Field(
        None, gt=0, le=100, description="of the noise's mean in each channel, as in the training; null: none"
    )
    prior_loss_weight: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="of the rows that the column of role `prior` says are pictures of the class; null: no such column",
    )

    @field_validator("timesteps")
    @classmethod
    def _some_timesteps(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if not isinstance(value, int):
            if not value:
                raise ValueError("name at least one timestep")
            if twice := [one for one in value if value.count(one) > 1]:
                raise ValueError(f"names {twice[0]} twice")
        return value


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
    by: str | None = Field(
        None,
        min_length=1,
        description="a column of the training rows, or file: by.parquet has influence by its values",
    )
    tokens: bool = Field(False, description="write what each token of the first rows per query contributes")
    most_bad_rows: float | None = Incidental(
        None, ge=0, le=1, description="share of rows without a score above which a run that is done fails; null: any"
    )


class RunConfig(_Part):
    """One run: which rows of `train` did what `queries` show?"""

    model: ModelConfig
    train: RowsConfig
    queries: QueriesConfig
    method: MethodConfig = Field(default_factory=MethodConfig)
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
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
    def _of_use(self) -> RunConfig:
        """What would have no effect here is a mistake."""
        if self.results.by is not None and not self.results.scores:
            raise RequestError("results.by", self.results.by, "needs the rows' influences", "set results.scores: true")
        if self.index_projection is not None and not self.index:
            raise RequestError(
                "index_projection", self.index_projection, "there is no index", "use index: true with it"
            )
        if self.model.task != PICTURES and ":" not in self.model.task:  # a task of the user's own may read them
            asked, usual = self.diffusion.model_dump(), DiffusionConfig().model_dump()
            without = {f"diffusion.{key}": value for key, value in asked.items() if value != usual[key]}
            if self.model.lora_alpha is not None:
                without["model.lora_alpha"] = self.model.lora_alpha
            for key, value in without.items():
                problem = f"has no effect on model.task {self.model.task}"
                raise RequestError(key, value, problem, f"it belongs to {PICTURES}")
        if isinstance(self.model.adapter, tuple):
            if isinstance(self.index, str):
                raise RequestError("index", self.index, "is one place for several runs", "use index: true")
            if self.diffusion.generate is not None:
                problem = "each of several adapters would make a picture of its own"
                raise RequestError("diffusion.generate", None, problem, "give queries with pictures, or one adapter")
            if not self.results.scores:
                problem = "leaves nothing of several adapters' runs to add"
                raise RequestError("results.scores", "false", problem, "use true, or one adapter")
        return self
