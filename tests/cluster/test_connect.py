"""What a run is told of Ray's errors that nobody further down knew what to do about."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.exceptions import GetTimeoutError, OutOfDiskError

from datainf_ray.cluster.connect import connected
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.config import ClusterConfig

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def test_an_error_of_rays_becomes_one_line_of_ours(tmp_path: Path) -> None:
    for error in (GetTimeoutError("a\nb"), OutOfDiskError("full")):
        with pytest.raises(RunFailedError) as found, connected(ClusterConfig(), str(tmp_path)):
            raise error
        assert "\n" not in str(found.value)


def test_what_our_code_raised_in_a_task_comes_out_as_it_was(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def fails(error: Exception) -> None:
        raise error

    with (
        pytest.raises(RequestError, match=r"^train\.path: x: is not there$"),
        connected(ClusterConfig(), str(tmp_path)),
    ):
        ray.get(fails.remote(RequestError("train.path", "x", "is not there")))
    with pytest.raises(RunFailedError, match=r"^OSError: no space$"), connected(ClusterConfig(), str(tmp_path)):
        ray.get(fails.remote(OSError("no space")))
