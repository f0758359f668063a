"""Gaussian noise that follows from a row's id, the timestep and the seed alone: the same bits on every device.

The random words are the projection's: Philox, in integer arithmetic. A word becomes a normal number by Wichura's
algorithm AS 241 (1988) in float64, with additions, multiplications, divisions and square roots only, which IEEE 754
rounds in one way; a library's logarithm or cosine differs in its last bits from one processor to the next.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from datainf_ray.influence.projection import philox

_WORDS = 4  # that a counter gives
#: Numerators and denominators of AS 241 (PPND16), the highest power first: near the median, beyond it, far out.
_NEAR = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_BEYOND = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def key_of(name: str) -> tuple[int, int]:
    """The two words that noise is drawn by for a row of this id.

    >>> key_of("train.parquet#0")
    (3660868210, 3527543162)
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def noise(keys: Tensor, timesteps: Tensor, size: int, seed: int) -> Tensor:
    """b × `size` independent standard normal numbers, float32, for b pairs of `keys` (b × 2 words) and `timesteps` (b).

    A pair's numbers are the same whatever the other pairs are.
    """
    count = -(-size // _WORDS)
    position = torch.arange(count, device=keys.device).repeat(len(keys), 1)
    parts = [position, timesteps[:, None].expand_as(position), *(keys[:, [k]].expand_as(position) for k in (0, 1))]
    words = philox(torch.stack(parts, 2).flatten(0, 1), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return normal(words).float().view(len(keys), -1)[:, :size]


def normal(words: Tensor) -> Tensor:
    """The standard normal number, float64, below which a share (w + ½) / 2³² lies, for each word w."""
    q = (words.double() + 0.5) * 2.0**-32 - 0.5
    near = q * _ratio(_NEAR, 0.180625 - q * q)
    r = (-_log(0.5 - q.abs())).sqrt()
    far = torch.where(r <= 5, _ratio(_BEYOND, r - 1.6), _ratio(_FAR, r - 5))
    return torch.where(q.abs() <= 0.425, near, torch.where(q < 0, -far, far))


def _ratio(terms: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    above, below = (_polynomial(each, x) for each in terms)
    return above / below


def _polynomial(terms: tuple[float, ...], x: Tensor) -> Tensor:
    """Σ_k terms_k · x^(n−k), step by step: each product is rounded before it is added."""
    found = torch.full_like(x, terms[0])
    for term in terms[1:]:
        found = found * x
        found = found + term
    return found


def _log(x: Tensor) -> Tensor:
    """The natural logarithm of positive float64: x = m · 2^e, and log m = 2 artanh((m − 1) / (m + 1)) as a series."""
    m, e = torch.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = torch.where(low, m * 2, m), e.double() - low.double()
    s = (m - 1) / (m + 1)
    series = _polynomial(tuple(2.0 / k for k in range(21, 0, -2)), s * s)
    return series * s + e * math.log(2)
