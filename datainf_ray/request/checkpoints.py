"""A request with several adapters, checkpoints of one fine-tune, as the requests of a run for each."""

from __future__ import annotations

import re

from datainf_ray.config import RunConfig

#: The folder of these runs, beneath the output that has their sum.
RUNS = "runs"
_LONGEST = 60  # characters of an adapter's name


def checkpoints(config: RunConfig) -> list[RunConfig]:
    """The configuration of each adapter's run, in order; none where one adapter is asked for.

    Their outputs are beneath that of the whole, as in runs/0002-checkpoint-300: the adapter's number and name.
    """
    adapters = config.model.adapter if isinstance(config.model.adapter, tuple) else ()
    return [_one(config, number, adapter) for number, adapter in enumerate(adapters)]


def several(config: RunConfig) -> bool:
    """Whether there is more than one adapter."""
    return isinstance(config.model.adapter, tuple)


def first_of(config: RunConfig) -> RunConfig:
    """The configuration of the first adapter's run, or of the only one's."""
    return next(iter(checkpoints(config)), config)


def _one(config: RunConfig, number: int, adapter: str) -> RunConfig:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", adapter.rstrip("/").rpartition("/")[2])[-_LONGEST:]
    model = config.model.model_copy(update={"adapter": adapter, "adapter_weights": None})
    output = f"{config.output.rstrip('/')}/{RUNS}/{number:04d}-{name}"
    return config.model_copy(update={"model": model, "output": output})
