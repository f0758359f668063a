"""Which training rows did this? DataInf influence of every row of a LoRA fine-tuning corpus, on Ray.

import datainf_ray

run = datainf_ray.attribute("attribute.yaml", output="runs/a")
run.top(query=0, k=10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datainf_ray.common.errors import RequestError, RunFailedError, StoppedError
    from datainf_ray.config import RunConfig
    from datainf_ray.curate.result import Curated
    from datainf_ray.curate.shown import ShownRow
    from datainf_ray.evaluation.compare import evaluate
    from datainf_ray.evaluation.result import Evaluation
    from datainf_ray.runs.cut import Cut
    from datainf_ray.session.checkup import check
    from datainf_ray.session.combine import combine
    from datainf_ray.session.front import attribute, query
    from datainf_ray.session.plan import plan
    from datainf_ray.session.run import Run, open_run
    from datainf_ray.session.tokens import tokens

__all__ = [
    "Curated",
    "Cut",
    "Evaluation",
    "RequestError",
    "Run",
    "RunConfig",
    "RunFailedError",
    "ShownRow",
    "StoppedError",
    "attribute",
    "check",
    "combine",
    "evaluate",
    "open_run",
    "plan",
    "query",
    "tokens",
]

# Imported when they are first used: reading a run needs no torch, and `datainf --help` should not wait for it.
_HOMES = {
    "Curated": "curate.result",
    "Cut": "runs.cut",
    "Evaluation": "evaluation.result",
    "RequestError": "common.errors",
    "Run": "session.run",
    "RunConfig": "config",
    "RunFailedError": "common.errors",
    "ShownRow": "curate.shown",
    "StoppedError": "common.errors",
    "attribute": "session.front",
    "check": "session.checkup",
    "evaluate": "evaluation.compare",
    "combine": "session.combine",
    "open_run": "session.run",
    "plan": "session.plan",
    "query": "session.front",
    "tokens": "session.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
