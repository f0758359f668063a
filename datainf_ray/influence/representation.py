"""Representation: how alike the model sees two rows, whatever it learns from them.

    influence    I(q,k) = − h_q · h_k / (‖h_q‖ ‖h_k‖)

where h is a row's last hidden state: a forward pass and no gradient. It says nothing of training, and is the baseline
that independent studies found hard to beat. From −1 (alike, "helpful") to 1. A query of several rows has their mean.
"""

from __future__ import annotations

from datainf_ray.influence.cosine import METHOD as COSINE
from datainf_ray.influence.method import Method

METHOD = Method("representation", COSINE.program, COSINE.sweeps, prepare=COSINE.prepare, states=True, additive=False)
