"""How well the rows of a query's own class are found among all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.common.statistics import auc, recall


def by_query(
    method: str,
    influence: np.ndarray,
    train: np.ndarray,
    queries: np.ndarray,
    seen: Mapping[str, Any],
    also: Callable[[np.ndarray, np.ndarray], dict[str, Any]],
) -> list[dict[str, Any]]:
    """A record for each of m queries: AUC and recall of the rows of its class, from the most helpful row on.

    `influence` is n × m; `train` (n) and `queries` (m) are classes. A record has `seen`, too, and what `also` makes of
    a query's influences (n) and of which rows are of its class (n).
    """
    records = []
    for q, own in enumerate(queries):
        truth, scores = train == own, influence[:, q]
        found = {"auc": auc(-scores, truth), "recall": recall(-scores, truth), **also(scores, truth)}
        records.append({"method": method, "query": q, "class": own, **found, **seen})
    return records
