"""run.json: what a run is, how far it is, and what it took. `write_record` is the only writer.

A field that a run does not know yet is null. What an earlier version of this package did not write has a default, so
that its runs can be read, and picked up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from datainf_ray.common.errors import RequestError, misfit
from datainf_ray.common.words import counted, printable
from datainf_ray.runs.checksums import Stored
from datainf_ray.runs.directory import RunDirectory

RUN_FILE = "run.json"
FORMAT: Literal[1] = 1

_NAMED = 3  # blocks that a sentence names
_FAR = 0.01  # residual of a series
_MOST, _MOST_IN_A_LIST = 2**62, 2**31 - 1  # as many as the tables' types can count

RunState = Literal["starting", "running", "done", "failed", "interrupted"]


class _Part(BaseModel):
    model_config = ConfigDict(validate_assignment=True, extra="ignore", protected_namespaces=())


class Counts(_Part):
    """How much there is of what."""

    rows: int = Field(ge=0, le=_MOST)
    tokens: int | None = None  #: of the rows that have a score
    queries: int = Field(ge=1, le=_MOST_IN_A_LIST)
    blocks: int = Field(ge=1, le=_MOST_IN_A_LIST)
    parameters: int = Field(ge=1, le=_MOST)
    status: dict[str, int] = Field(default_factory=dict)  #: rows by status
    rows_cut: int | None = None  #: rows with more tokens than max_length


class Trainable(_Part):
    """Trainable parameters: those that are attributed, of all there are."""

    attributed: int
    total: int


class Capture(_Part):
    """How losses and gradients were taken, and how they compare with plain autograd on single rows."""

    path: Literal["hooks", "vmap", "one by one"]
    cosine: float | None = None
    reason: str | None = None
    loss: Literal["chunked", "whole"]
    loss_reason: str | None = None
    lengths_reason: str | None = None  #: why only rows of the same length shared a batch


class StartLoss(_Part):
    """The mean loss of a few rows before the first sweep."""

    rows: int
    adapter: float  #: of base and adapter
    base: float  #: of the base alone


class Portions(_Part):
    """How the work was cut; a run that is picked up again takes them from here, because its bits depend on them."""

    chunk_rows: int = Field(ge=1)
    batch_tokens: int = Field(ge=1)
    groups: tuple[tuple[int, int], ...]
    resident: bool = True
    gradients: Literal["keep", "recompute"]
    why: str = ""


class SweepRecord(_Part):
    """What a sweep took. `id` is its name in files, the same in every attempt."""

    id: str = ""
    name: str
    source: Literal["backward", "object-store", "index", "runs", "prompts"]
    examples: int
    tokens: int
    seconds: float
    workers: int
    recomputed: int = 0  #: chunks whose gradients had been kept, and were lost
    smaller_batches: dict[int, int] = Field(default_factory=dict)  #: chunk: tokens, where there was no room for more


class IndexRecord(_Part):
    """The gradient index that the run wrote, and how well a projected one answers the run's own queries."""

    url: str
    projection: int | None = None
    dtype: str
    bytes: int
    correlation: float | None = None
    correlation_rows: int = 0


class Earlier(_Part):
    """The run, and its gradient index, that this one's queries were answered from."""

    run: str
    index: str


class Combined(_Part):
    """A run of which this one has the weighted influences in its sum."""

    run: str
    fingerprint: str
    weight: float = Field(gt=0)
    content: str  #: a digest of what its tables hold


class Problem(_Part):
    """A row without a score."""

    id: str
    status: str
    detail: str


class _Results(BaseModel):
    top_k: int = Field(ge=1)
    scores: bool
    blocks: bool


class _Method(BaseModel):
    name: str
    damping: float


class _Rows(BaseModel):
    path: str | list[str] | tuple[str, ...]


class _Config(BaseModel):
    """What readers of a run need of its configuration; the rest is whatever its version had."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: dict[str, Any]
    train: _Rows
    queries: _Rows
    method: _Method
    results: _Results


class RunRecord(_Part):
    """The whole of run.json."""

    format: Literal[1] = FORMAT
    state: RunState
    reason: str | None = None  #: why it failed or was interrupted
    config: dict[str, Any]  #: without credentials
    fingerprint: str = ""  #: what its version calls the run; see `request.identity`
    identity: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    sign: str | None = None
    created: str | None = None
    finished: str | None = None
    seconds: float = 0.0  #: of the last attempt
    startup: float | None = None  #: seconds until the first chunk was handed out
    counts: Counts | None = None
    trainable: Trainable | None = None
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    capture: Capture | None = None
    weights: dict[str, str] = Field(default_factory=dict)  #: digests of the workers' models, by device and dtype
    start_loss: StartLoss | None = None
    sizes: Portions | None = None
    sweeps: list[SweepRecord] = Field(default_factory=list)
    crashed: dict[str, list[int]] = Field(default_factory=dict)  #: by corpus, rows that ended every worker
    damped: bool = True  #: the method has a damping
    curvature: dict[str, Any] | None = None  #: what the method says of it
    left_out: list[str] = Field(default_factory=list)  #: blocks whose gradient is rounding
    index: IndexRecord | None = None
    answers: Earlier | None = None
    combined: list[Combined] | None = None  #: the runs whose weighted sum this one is, in the order that was asked for
    problems: list[Problem] = Field(default_factory=list)  #: the first rows without a score
    pictures: dict[str, Stored] = Field(default_factory=dict)  #: made of queries' prompts, by name
    files: dict[str, Stored] = Field(default_factory=dict)  #: by name, what the tables of a run that is done hold

    @field_validator("config")
    @classmethod
    def _readable(cls, config: dict[str, Any]) -> dict[str, Any]:
        try:
            _Config.model_validate(config)
        except ValidationError as error:
            raise ValueError(misfit(error)) from None
        return config

    @model_validator(mode="after")
    def _whole(self) -> RunRecord:
        if self.state == "done" and self.counts is None:
            raise ValueError("counts: a run that is done has them")
        return self


def tell_left_out(names: Sequence[str], blocks: int) -> str:
    """In a sentence without its full stop, which of so many `blocks` are left out, and why."""
    some = ", ".join(printable(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    what = "is left out: its gradient is" if len(names) == 1 else "are left out: their gradients are"
    return f"{len(names):,} of {counted(blocks, 'block')} {what} zero but for rounding ({some}{more})"


def tell_unsolved(curvature: Mapping[str, Any], method: Mapping[str, Any]) -> str | None:
    """In a sentence without its full stop, how far a method's inverse is from the exact one; None where it is near.

    `curvature` is what run.json says of it, and `method` that part of the configuration.
    """
    way, residual, tolerance = curvature.get("way"), curvature.get("residual"), method.get("tolerance")
    if way is None or residual is None or tolerance is None:
        return None
    if way == "series" and residual <= _FAR:
        return None
    if way == "series":
        what = f"the series is far from its limit, the inverse: a block's relative residual is {residual:.2g}"
        return f"{what}, from 1 before the first term to 0; more method.iterations are nearer"
    if residual <= tolerance:
        return None
    above = f"a block's relative residual is {residual:.1e}, above method.tolerance, {tolerance:.0e}"
    if (done := curvature.get("iterations")) is None:
        return f"{above}: float64 comes no nearer at so small a method.damping"
    return f"after {counted(done, 'iteration')} {above}: allow more method.iterations, or a larger method.damping"


def tell_half_precision(dtype: str) -> str:
    """In a sentence without its full stop, what it does to influences that the base computes in 16 bits."""
    moved = "0.5 %" if dtype == "float16" else "3 to 8 %"
    order = "1.00" if dtype == "float16" else "0.99"
    moves = f"moved influences by {moved} in real models, and their order hardly (rank correlation {order})"
    return f"the base computes in {dtype}: against float32 that {moves}"


class Writes(Protocol):
    """A run directory; or the lease on it, which writes as long as it is held."""

    def write_json(self, name: str, value: Any) -> None: ...


def write_record(place: Writes, record: RunRecord) -> None:
    """Write run.json, in one step."""
    place.write_json(RUN_FILE, record.model_dump(mode="json"))


def read_record(directory: RunDirectory) -> RunRecord:
    """Read run.json. Raises `RequestError` where there is none, or where a field of it is not what it should be."""
    document = directory.document(RUN_FILE, FORMAT, "is not a run directory: there is no run.json in it")
    try:
        return RunRecord.model_validate(document)
    except ValidationError as error:
        raise RequestError(directory.key, directory.url, f"{RUN_FILE}: {misfit(error)}") from None
