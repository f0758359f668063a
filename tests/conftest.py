"""What tests share: Ray kept to this machine, and small models that are made on the spot."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

# Ray reads these when it is first imported.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # misnamed: on Linux it keeps every Ray port on 127.0.0.1
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_SCHEDULER_EVENTS="0",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    # As a Ray that a run starts has them, so that workers need no environment of their own.
    MALLOC_ARENA_MAX="1",
    MALLOC_MMAP_THRESHOLD_=str(2**25),
    MALLOC_TRIM_THRESHOLD_=str(2**40),
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of the tests' own; runs inside join it. Only for tests that leave it whole.

    Workers that a run has done with are given to the next one (see `tests.warm`), but where a test is marked
    `fresh_workers`.
    """
    import ray

    from tests import warm

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "jobs"), prepend=os.pathsep)  # tasks of experiments
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 * 10**8
        )
    with warm.workers():
        yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _fresh_workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers of their own for tests that are marked so."""
    if request.node.get_closest_marker("fresh_workers") is None:
        yield
        return
    from tests import warm

    with warm.none():
        yield


@pytest.fixture
def tiny_llama(tmp_path: Path) -> dict[str, Any]:
    """The `model` part of a configuration; beside it 40 training rows and 4 queries."""
    tiny.write_rows(tmp_path / "train.jsonl", 40, seed=1)
    tiny.write_rows(tmp_path / "queries.jsonl", 4, seed=2)
    return tiny.save_model(tmp_path, "llama")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket on an S3 server of this test's own."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance of another test talks to that test's server
    reset = f"http://{host}:{port}/moto-api/reset"
    urllib.request.urlopen(reset, data=b"")  # servers of one process share their buckets
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
