"""Storage that fails every fifth call, and storage that refuses every write in the middle of a run."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from tests.buckets import Bucket
from tests.faults import Unwell, unwell_s3

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def unwell() -> Iterator[tuple[str, Unwell]]:
    with unwell_s3(seed=1) as (url, server):
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"")  # servers of one process share their buckets
        yield url, server


@pytest.fixture(scope="module")
def server(unwell: tuple[str, Unwell]) -> Unwell:
    return unwell[1]


@pytest.fixture(scope="module")
def bucket(unwell: tuple[str, Unwell], tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return Bucket(unwell[0], tmp_path_factory.mktemp("unwell"))


@pytest.fixture(scope="module")
def quiet(bucket: Bucket) -> dict[str, bytes]:
    return bucket.run("quiet")


def test_every_fifth_call_may_fail(bucket: Bucket, server: Unwell, quiet: dict[str, bytes]) -> None:
    process = bucket.start("unwell")
    try:
        server.share = 0.2  # from the first call on
        _, said = process.communicate(timeout=280)
    finally:
        server.share = 0.0
    assert process.returncode == 0, said[-3000:]
    assert server.failed > 20
    assert {k: bucket.read(f"unwell/{k}") for k in bucket.keys("unwell") if k.endswith(".parquet")} == quiet


def test_a_store_that_refuses_writes_ends_the_run_with_the_reason_and_loses_nothing(
    bucket: Bucket, server: Unwell, quiet: dict[str, bytes]
) -> None:
    process = bucket.start("refused")
    bucket.until("refused", "checkpoints/ihvp.json", process)  # then the scoring sweep begins
    server.read_only = True
    try:
        _, said = process.communicate(timeout=100)
    finally:
        server.read_only = False
    assert process.returncode == 1, said[-3000:]
    last = said.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert "made to fail" in last
    assert "run.json could not be written" in said
    assert bucket.run("refused") == quiet
