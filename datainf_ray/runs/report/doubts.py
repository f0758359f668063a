"""Where a result may mislead: the first rows have something in common that has nothing to do with the query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from datainf_ray.common.words import printable
from datainf_ray.runs.record import RunRecord
from datainf_ray.runs.report.listed import Listed

_FEWEST = 5  # rows of which something in common is no chance
_NEARLY = 0.8  # of the first rows
_USUAL = 0.5  # of all rows that are listed: what holds for more of them says nothing of the first
_CLOSE = 0.9  # rank correlation
_MANY = 100  # rows of a sample from which something is told
_SAME = 0.95  # of the loss without the adapter, or by chance


def of_first(rows: Sequence[dict[str, Any]], listed: Listed, losses: np.ndarray, tokens: np.ndarray) -> list[str]:
    """What the first rows of a query and direction have in common, a sentence each.

    `losses` and `tokens` are of a sample of all rows.
    """
    if len(rows) < _FEWEST:
        return []
    told = []
    labels = [listed.label(row["row"]) for row in rows]
    all_labels = [label for row in listed.rows if (label := listed.label(row)) is not None]
    if None not in labels and len(set(labels)) == 1 and all_labels.count(labels[0] or "") < 0.9 * len(all_labels):
        told.append(f"All of the first {len(rows)} have the label {printable(labels[0] or '', 40)}.")
    told += _of_predictions(rows, listed)
    facts = [listed.facts[row["row"]] for row in rows if row["row"] in listed.facts]
    if len(facts) < len(rows) or len(losses) < _MANY:
        return told
    lengths = {fact.tokens for fact in facts}
    if len(lengths) == 1 and np.mean(tokens == facts[0].tokens) < 0.5:
        told.append(f"All of the first {len(rows)} have {facts[0].tokens} tokens: is it the length that they share?")
    high = float(np.quantile(losses, 0.99))
    many = sum(fact.loss is not None and fact.loss >= high for fact in facts)
    if many >= _NEARLY * len(rows) and high > float(np.median(losses)):
        told.append(
            f"{many} of the first {len(rows)} are among the 1 % of rows with the highest loss: "
            "they may stand here for being hard or broken, whatever the query."
        )
    return told


def _of_predictions(rows: Sequence[dict[str, Any]], listed: Listed) -> list[str]:
    """Whether the first rows have other labels than the model predicts, unlike most rows that are listed."""
    differs = listed.labels.differs
    first = [differs(row["row"]) for row in rows]
    every = [one for row in listed.facts if (one := differs(row)) is not None]
    count = sum(map(bool, first))
    if None in first or count < _NEARLY * len(first) or sum(every) > _USUAL * len(every):
        return []
    what = "wrong labels, or rows that the fine-tune has not learned"
    return [f"{count} of the first {len(first)} have another label than the model predicts: {what}."]


def of_query(influence: np.ndarray, losses: np.ndarray, sqnorms: np.ndarray, norm: str) -> list[str]:
    """What the sizes of a query's influences follow, a sentence each; all are of the same sample of rows.

    `norm` says what `sqnorms` are the squares of.
    """
    told = []
    for name, values in (("loss", losses), (norm, sqnorms)):
        found = rank_correlation(np.abs(influence), values)
        if found is not None and found >= _CLOSE:
            told.append(
                f"The size of the influence follows the rows’ {name} (rank correlation {found:.2f}): "
                f"a list by {name} alone would be much the same."
            )
    return told


def of_run(record: RunRecord, listed: Listed, losses: np.ndarray) -> list[str]:
    """Whether the fine-tune has learned anything."""
    told, start = [], record.start_loss
    if start is not None and start.adapter > _SAME * start.base:
        told.append(
            f"On {start.rows} rows the mean loss is {start.adapter:.2f} with the adapter and {start.base:.2f} without: "
            "the fine-tune has hardly learned from them, and influences then say little."
        )
    classes = {listed.label(row) for row in listed.rows} - {None}
    mean = float(np.mean(losses)) if len(losses) >= _MANY else 0.0
    if len(classes) > 1 and mean > _SAME * math.log(len(classes)):
        told.append(
            f"The rows’ mean loss is {mean:.2f}, and guessing one of {len(classes)} classes has "
            f"{math.log(len(classes)):.2f}: the fine-tune has not learned to tell them apart."
        )
    return told


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's; None where there are few values, or one is constant."""
    fine = np.isfinite(one) & np.isfinite(other)
    if fine.sum() < _MANY:
        return None
    ranks = [_ranks(values[fine]) for values in (one, other)]
    spread = [float(np.std(rank)) for rank in ranks]
    if not min(spread):
        return None
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in order from 0; equals share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
