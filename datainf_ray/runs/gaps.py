"""How many of the largest numbers stand apart from all others, where a tail as heavy as theirs would not put them.

Of independent numbers x_1 ≥ x_2 ≥ … with a tail of any heaviness the E_j = j · log(x_j / x_{j+1}) are independent, and
exponential with one mean γ (Rényi 1953): 1/3 for Student's t of 3 degrees. With a lighter tail, as the normal one,
their mean grows with j. So the gap behind the k-th number is compared with Hill's estimate (1975) of mγ from the m
numbers behind it, H = Σ_i log(x_{k+i} / x_{k+m+1}) = Σ_i w_i E_{k+i} with w_i = i / (k + i). Where nothing stands apart

    P(E_k / H > t) = Π_i 1 / (1 + t w_i)

whatever γ is, and less with a lighter tail. Where k numbers do stand apart, H says how the others are spread without
knowing of them. (Gaps as a test of several outliers, "dragon kings": Wheatley and Sornette 2015,
https://arxiv.org/abs/1510.08162.) The gaps behind every k are looked at, and k has the share 1 / k(k + 1) of the level.
The numbers behind those that stand apart are looked at in the same way.
"""

from __future__ import annotations

import math

import numpy as np

from datainf_ray.runs.magnitudes import DIGITS, Sizes

RATIO = 1.2  #: of the last number that stands apart to the next, at least: a smaller gap nobody would cut in
_MOST = 1 / 3  # of the numbers may stand apart
#: Numbers behind a gap that it is compared with: at least; where there are as many; at most.
_FEWEST, _WINDOW, _LARGEST = 15, 30, 1 << 14


def apart(numbers: Sizes, level: float) -> tuple[int, float]:
    """How many of the largest stand apart, and the chance that noise would have such a gap; (0, 1) where none do.

    `level` is the probability with which some are found in noise.
    """
    begin, rows, least = 0, 0, 0.0
    while True:
        edge, chance = _clearest(numbers.sizes[begin:], numbers.counts[begin:], int(_MOST * numbers.rows) - rows)
        if not edge or chance > math.log(level):
            return rows, math.exp(least) if rows else 1.0
        begin += edge
        rows, least = int(numbers.counts[:begin].sum()), min(least, chance)


def _clearest(sizes: np.ndarray, counts: np.ndarray, most: int) -> tuple[int, float]:
    """Behind which bin the clearest gap is, as their number, and the logarithm of the chance that noise has it."""
    logs, ends = np.log(sizes), np.cumsum(counts)
    edges, sums = np.concatenate([[0], ends]), np.concatenate([[0.0], np.cumsum(logs * counts)])
    best, least = 0, 0.0
    for at in np.flatnonzero((logs[:-1] - logs[1:] >= math.log(RATIO)) & (ends[:-1] <= most)).tolist():
        k = int(ends[at])
        m = min(max(2 * k, _WINDOW), (int(ends[-1]) - k) // 4, _LARGEST)
        if m < _FEWEST:
            break
        last = int(np.searchsorted(ends, k + m + 1))  # the bin of x_{k+m+1}
        hill = float(np.interp(k + m, edges, sums) - sums[at + 1] - m * logs[last])
        if hill <= 0:
            continue
        t, weights = k * (logs[at] - logs[at + 1]) / hill, 1 / (1 + k / np.arange(1, m + 1))
        copies = _copies(logs[at + 1 : last + 1], m + 1)
        chance = -float(np.log1p(t * weights).sum()) / copies + math.log(k * (k + 1))
        if chance < least:
            best, least = at + 1, chance
    return best, least


def _copies(logs: np.ndarray, m: int) -> float:
    """How often each of m numbers is there, on average, as far as bins tell: 1 where all differ, about 5 where each
    stands there five times. Those that differ would be in as many bins as m balls that are thrown into them.
    """
    bins = (logs[0] - logs[-1]) * (1 << DIGITS) / math.log(2) + 1
    return max(1.0, bins * (1 - (1 - 1 / bins) ** m) / len(logs)) if bins > 1 else 1.0
