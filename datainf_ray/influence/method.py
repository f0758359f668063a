"""What a method is: a short program of sweeps, and the facts about it that other modules need.

With the notation of Kwon, Wu, Wu and Zou (ICLR 2024), v_ql is the gradient of query q in block l, g_kl that of row k,
and I(q,k) the influence of row k on query q. A row of positive influence is harmful: giving it more weight in training
raises the query's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from datainf_ray.influence.folds import Fold, Statistic

SIGN = (
    "positive influence: upweighting the row raises the query's loss (harmful); "
    "negative influence: it lowers the query's loss (helpful)"
)

Handle = TypeVar("Handle")

#: Which rows a sweep goes over: all, a small random sample, two disjoint halves of a larger one, or those that
#: self-influence sums over.
Over = Literal["train", "pilot", "half a", "half b", "self"]

#: Of these, the ones that a curvature is taken from, which may be swept several times.
CURVATURE: tuple[Over, ...] = ("train", "half a", "half b")


class Sweeps(Protocol[Handle]):
    """Where a method's program runs. A handle stands for a state: a statistic for every block, wherever it lies."""

    @property
    def groups(self) -> Sequence[tuple[int, int]]:
        """first..last-1 of the queries whose curvature one sweep can hold."""

    def run(
        self,
        name: str,
        fold: type[Fold],
        over: Over = "train",
        values: Mapping[str, Any] | None = None,
        **inputs: Handle,
    ) -> Handle:
        """One sweep over training rows: the fold's merged statistics.

        The fold is made with `inputs`, which are states, and `values`, which are plain and the same for every chunk.
        """

    def each_block(self, function: Callable[..., Statistic], *states: Handle, **values: Any) -> Handle:
        """`function(block, *statistics, **values)` for every block, where the states lie."""

    def merged(self, fold: type[Fold], left: Handle, right: Handle) -> Handle:
        """A fold's statistics over two disjoint sets of rows, as those over all of them."""

    def collect(self, state: Handle) -> Mapping[str, Statistic]:
        """A small state, here."""

    def remember(self, name: str, solve: Callable[[], dict[str, Handle]]) -> dict[str, Handle]:
        """What `solve` gives, kept with the run, so that a run that is picked up again need not solve twice."""

    def iterate(
        self,
        name: str,
        start: Callable[[], dict[str, Handle]],
        step: Callable[[int, dict[str, Handle]], dict[str, Handle] | None],
    ) -> dict[str, Handle]:
        """The last of the states that begin with `start()` and go on with `step(k, states)`, k = 1, 2, …, until None.

        The newest states are kept with the run, so that a run that is picked up again goes on behind its last step.
        """


@dataclass(frozen=True)
class Settings:
    """What a program is asked: the configuration's `method`, less its name and its loss; and how large the problem is.

    `rows` and `sizes` are for programs that do otherwise where the problem is larger: they must not depend on anything
    that may be different when the run is picked up again.
    """

    damping: float = 0.1  #: c
    sampled: bool = False  #: the curvature is that of the rows "half a" and "half b"
    tolerance: float = 1e-6  #: of a relative residual
    iterations: int | None = None  #: the most; None: what is needed
    scale: float | None = None  #: of LiSSA; None: from the largest eigenvalue
    seed: int = 0
    self_influence: bool = False  #: every row's influence on itself is wanted, too
    rows: int = 0  #: of the corpus
    curvature_rows: int = 0  #: rows that the curvature is taken from
    sizes: Mapping[str, int] = field(default_factory=dict)  #: by block, d_l: entries of a gradient as it is swept


@dataclass(frozen=True)
class Extent:
    """What a program has to go over; its sweeps are planned from this."""

    rows: int  #: of the corpus
    groups: Sequence[tuple[int, int]]  #: first..last-1 of the queries, as `Sweeps.groups`
    sampled: int | None = None  #: rows that the curvature is taken from, where those are not all
    known: bool = False  #: the damping is known already
    settings: Settings = field(default_factory=Settings)

    @property
    def queries(self) -> int:
        return self.groups[-1][1]


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep that a program will make, in figures of n rows, q queries and D parameters in all blocks."""

    name: str
    rows: int  #: n
    over: Over = "train"
    queries: int = 0  #: q
    products: int = 0  #: matrix products of n × D with D × q, or of that size
    sums: int = 0  #: vectors of D float32 that a chunk sends for every query
    state: int = 0  #: bytes that its sums come to beside these, however many queries there are
    guess: bool = False  #: how many of these there will be is not known before


@dataclass(frozen=True)
class Sample:
    """Random rows that a program sweeps beside the corpus, dealt into disjoint `parts` of equal size."""

    rows: int
    parts: tuple[Over, ...]
    pieces: int  #: chunks that they are cut into, where a chunk then has 16 rows at least
    even: bool = False  #: chunks are of equal size and even in number, else the last one may be smaller


#: What a program solved: states by name. `facts` has the `moments` of every block, and what else is known of it.
Solved = dict[str, Handle]


@dataclass(frozen=True)
class Method:
    """One way to compute influence. A new one is a file that makes such a record, and a line in `register`.

    `program(sweeps, queries, settings, known)` makes the sweeps, the last of which gives the scores, and returns what
    it solved. `queries` are the queries' gradients (`vector`, m × d_l a block), as `prepare` left them; `known` is
    a state with the `damping` of every block where it is known, as from a gradient index, else None.

    `sweeps` tells which sweeps that makes, `sample` which random rows it needs beside the corpus, and `self_sample`
    which ones self-influence does.
    `prepare(sweeps, gradients)` is what becomes of the queries' gradients first, before any projection. `tell(solved,
    rows)` is what run.json says of the curvature, from what was solved (collected) and the number of rows that it was
    taken from; None where there was none. `refuses(extent)` says why it makes no sense for so much, and what would;
    None where it does. `state(extent, size)` is what the largest statistic of a block of `size` entries takes, in
    bytes, apart from what grows with the queries. `between(extent)` says how many vectors of D float32 there are for
    every query of a group, in the object store and in the run directory, from one sweep to the next.
    """

    name: str
    program: Callable[[Sweeps[Any], Any, Settings, Any | None], dict[str, Any]]
    sweeps: Callable[[Extent], list[PlannedSweep]]
    sample: Callable[[Extent], Sample | None] = lambda extent: None
    damped: bool = False  #: `method.damping` and `method.curvature_rows` mean something to it
    keys: frozenset[str] = frozenset()  #: what else of the configuration's `method` does: tolerance, iterations, scale
    self_influence: bool = False  #: it can tell every row's influence on itself
    states: bool = False  #: it takes a row's last hidden state, the only block, in place of gradients
    prepare: Callable[[Sweeps[Any], Any], Any] = lambda sweeps, gradients: gradients
    tell: Callable[[Mapping[str, Mapping[str, Statistic]], int], dict[str, Any] | None] = lambda solved, rows: None
    self_sample: Callable[[Extent], Sample | None] = lambda extent: None
    refuses: Callable[[Extent], tuple[str, str] | None] = lambda extent: None
    state: Callable[[Extent, int], int] = lambda extent, size: 0
    between: Callable[[Extent], int] = lambda extent: 0
    additive: bool = True  #: a row's influence is the sum of what its tokens' gradients give
    wide: bool = False  #: rows are scored by vectors in float64

    def sums(self, extent: Extent) -> int:
        """The most vectors of D float32 that a chunk sends for every query; 0: it sends no sums."""
        return max(sweep.sums for sweep in self.sweeps(extent))
