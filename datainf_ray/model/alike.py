"""Which rows may share a batch, in models whose positions follow the longest row of a batch.

Rotary positions of the kind longrope turn by other angles once a batch is longer than
`original_max_position_embeddings`, and those of dynamic NTK by angles of the batch's own length once it is longer than
`max_position_embeddings`. So a row's loss would depend on the rows beside it. Both follow from the
model's configuration.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

_CACHED = "max_seq_len_cached"


@dataclass(frozen=True)
class Alike:
    """`kind(lengths)` is the same for two examples that may share a batch, given how long their sequences are."""

    borders: tuple[int, ...] = ()  # a batch longer than one of these has other angles
    grows_beyond: int | None = None  # each length beyond this has angles of its own
    equal: bool = False  # only rows of the same lengths share a batch, whatever the configuration says

    def kind(self, lengths: Sequence[int]) -> Hashable:
        if self.equal:
            return tuple(lengths)
        own = self.grows_beyond
        return tuple((bisect_left(self.borders, n), n if own is not None and n > own else 0) for n in lengths)

    def groups(self, lengths: Sequence[Sequence[int]]) -> list[list[int]]:
        """The positions in `lengths`, those that may share a batch together, in order of each group's first."""
        found: dict[Hashable, list[int]] = {}
        for position, each in enumerate(lengths):
            found.setdefault(self.kind(each), []).append(position)
        return list(found.values())


def alike_by(config: Any) -> Alike:
    """What a model's configuration says, its parts' included."""
    borders: set[int] = set()
    growing: list[int] = []
    for part in _parts(config):
        for scaling in _scalings(part):
            kind = str(scaling.get("rope_type") or scaling.get("type"))
            limit = getattr(part, "max_position_embeddings", None)
            if kind == "longrope":
                original = scaling.get("original_max_position_embeddings")
                borders.add(original or getattr(part, "original_max_position_embeddings", None) or limit or 0)
            elif "dynamic" in kind and limit:
                growing.append(limit)
    return Alike(tuple(sorted(borders)), min(growing, default=None))


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it, as of the text model of an image-text model."""
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        if (part := getattr(config, name, None)) is not None:
            yield from _parts(part)


def _scalings(config: Any) -> Iterator[dict[str, Any]]:
    """What a configuration says of rotary positions: once, or once for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        said = getattr(config, name, None)
        if isinstance(said, dict):
            yield from (each for each in (said, *said.values()) if isinstance(each, dict))


def growing(model: nn.Module) -> list[nn.Module]:
    """The modules that keep the angles of the longest row so far, by dynamic NTK's rule, for rows that come later."""
    return [m for m in model.modules() if hasattr(m, _CACHED) and "dynamic" in str(getattr(m, "rope_type", None))]


def forget_lengths(modules: Sequence[nn.Module]) -> None:
    """Put the angles of `growing` modules back to those of a model that has seen no row."""
    for module in modules:
        for name in [name for name in vars(module) if name.endswith(_CACHED)]:
            prefix = name.removesuffix(_CACHED)
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if original is not None:
                now = getattr(module, f"{prefix}inv_freq")
                module.register_buffer(f"{prefix}inv_freq", original.to(now.device), persistent=False)
                setattr(module, name, module.original_max_seq_len)
