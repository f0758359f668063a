"""What Ray is asked for a worker: its name, and memory."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray._private.state import state
from ray.core.generated import gcs_pb2

from datainf_ray.cluster.orders import worker_spec
from datainf_ray.cluster.pool import Pool
from datainf_ray.config import load_config
from datainf_ray.planning.estimate import PROCESS_BYTES
from datainf_ray.planning.fits import least_memory
from datainf_ray.planning.room import Room
from datainf_ray.request.job import prepare
from tests import tiny

ROOM = Room(workers=1, gpus_per_worker=0, store_bytes=10**9, worker_bytes=10**10, device_bytes=None)


@pytest.mark.cluster
@pytest.mark.fresh_workers
@pytest.mark.usefixtures("local_ray")
def test_ray_calls_workers_by_their_run_and_keeps_memory_for_them(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    job = prepare(load_config(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run\x1b-named")))
    needed = PROCESS_BYTES + 4 * job.facts.base_parameters  # and a row, and sums
    with closing(Pool(worker_spec(job), 1, 0, 0, memory=least_memory(job, ROOM))) as pool:
        pool.start(1)
        pool.first("device_bytes")
        found = state._connect_and_get_accessor().get_actor_table(None, None)
        tables = [gcs_pb2.ActorTableData.FromString(one) for one in found]
        (ours,) = [table for table in tables if table.repr_name == "datainf:run-named:worker-0"]
        assert needed < ours.required_resources["memory"] < 1.1 * needed
    assert least_memory(job, replace(ROOM, worker_bytes=1000)) == 1000  # of what is there
    assert least_memory(job, replace(ROOM, gpus_per_worker=1)) == PROCESS_BYTES
