"""How well a ranking of the training rows finds those that were planted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOP = 20  # rows that a person would look through


@dataclass(frozen=True)
class Figures:
    """1 is perfect; by chance an AUC is 0.5, and a precision the share of planted rows."""

    auc: float  #: AUC of finding the planted rows, the mean over the queries
    auc_of_mean: float  #: the same for the mean of the queries, which is one ranking
    precision: float  #: share of planted rows among the first `TOP`, the mean over the queries
    precision_of_mean: float


def judge(suspicion: np.ndarray, planted: np.ndarray) -> Figures:
    """The figures of a method.

    `suspicion`, rows × queries, is how much the method blames each row for each query: minus the influence, or the
    loss. It is linear in the query for DataInf and Hessian-free, so the mean of its columns is what a run with
    `group: all` gives. `planted`, rows, is what is to be found.
    """
    from sklearn.metrics import roc_auc_score

    suspicion = suspicion.astype(np.float64)
    mean = suspicion.mean(axis=1)
    return Figures(
        auc=float(np.mean([roc_auc_score(planted, column) for column in suspicion.T])),
        auc_of_mean=float(roc_auc_score(planted, mean)),
        precision=float(np.mean([_precision(column, planted) for column in suspicion.T])),
        precision_of_mean=_precision(mean, planted),
    )


def _precision(suspicion: np.ndarray, planted: np.ndarray) -> float:
    return float(planted[np.argsort(-suspicion, kind="stable")[:TOP]].mean())
