"""One more step of training, on one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from datainf_ray.config import load_config
from datainf_ray.model.load import load_replica
from datainf_ray.model.replica import put_into
from datainf_ray.request.job import prepare
from experiments.common.attribution import batches_of


def patched(request: Mapping[str, Any], rate: float) -> Iterator[np.ndarray]:
    """For every training row, by how much the queries' losses (m) fall when one step is made on it.

    A step is AdamW's first: every number of the adapter moves by `rate` against the sign of the row's gradient. The
    model is put back after each.
    """
    job = prepare(load_config(dict(request)), writable=False)
    replica = load_replica(job.config.model, job.task, "cuda" if torch.cuda.is_available() else "cpu")
    queries = batches_of(job, replica, "queries")
    before = {name: p.detach().clone() for name, p in replica.parameters.items()}

    def losses() -> np.ndarray:
        found = np.empty(job.corpora["queries"].rows)
        with torch.no_grad():
            for batch in queries:
                found[batch.rows.tolist()] = replica.losses(batch).double().cpu().numpy()
        return found

    start = losses()
    for number, row in enumerate(batches_of(job, replica, "train", alone=True)):
        assert row.rows.tolist() == [number]
        step = replica.room(1)
        replica.gradients(row, put_into(step))
        with torch.no_grad():
            for name, parameter in replica.parameters.items():
                parameter.sub_(rate * step[name].sign().view_as(parameter).to(parameter))
        yield start - losses()
        with torch.no_grad():
            for name, value in before.items():
                replica.parameters[name].copy_(value)
