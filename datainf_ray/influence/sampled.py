"""Sweeps over the rows that a curvature is taken from: all of them, or the two halves of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datainf_ray.influence.folds import Fold
from datainf_ray.influence.method import Extent, Handle, Over, Sample, Sweeps

HALVES: tuple[Over, Over] = ("half a", "half b")


def over_sample(
    sweeps: Sweeps[Handle],
    name: str,
    fold: type[Fold],
    sampled: bool,
    values: Mapping[str, Any] | None = None,
    **inputs: Handle,
) -> Handle:
    """A fold's statistics over all rows; with `sampled`, over those of both halves."""
    if not sampled:
        return sweeps.run(name, fold, "train", values, **inputs)
    return sweeps.merged(fold, *(sweeps.run(name, fold, half, values, **inputs) for half in HALVES))


def planned_over(extent: Extent) -> list[tuple[int, Over]]:
    """The rows of each sweep of `over_sample`, and which they are."""
    if extent.sampled is None or extent.known:
        return [(extent.rows, "train")]
    return [(extent.sampled - extent.sampled // 2, "half a"), (extent.sampled // 2, "half b")]


def sample_of(extent: Extent) -> Sample | None:
    """The two halves, where the curvature is sampled."""
    if extent.sampled is None or extent.known:
        return None
    return Sample(extent.sampled, HALVES, pieces=64)
