"""A real S3 server instead of moto: SeaweedFS. Needs `pip install -e ".[test,seaweedfs]"`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.buckets import Bucket

WEED = shutil.which("weed")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(WEED is None, reason="SeaweedFS is not installed"),
]


def free_ports(count: int) -> list[int]:
    """Ports whose gRPC ports, 10,000 above them, are free as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port < 55_000 and port not in found:
                try:
                    other.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
                found.append(port)
    return found


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    folder = tmp_path_factory.mktemp("seaweedfs")
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4)
    command = [
        str(WEED), "server", f"-dir={folder / 'data'}", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        "-master.telemetry=false", "-volume.max=1000", "-master.volumeSizeLimitMB=64",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield _bucket(f"http://127.0.0.1:{s3}", folder)
    finally:
        server.terminate()
        server.wait(30)


def _bucket(url: str, folder: Path) -> Bucket:
    deadline = time.monotonic() + 60
    while True:
        try:
            return Bucket(url, folder)
        except (BotoCoreError, ClientError):  # it is not up yet
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(1)


def test_a_driver_may_be_killed_at_every_stage(bucket: Bucket) -> None:
    quiet = bucket.run("quiet")
    for moment in ("checkpoints/queries.json", "checkpoints/sums/curvature-1.json", "checkpoints/scores/chunk-",
                   "examples/"):  # fmt: skip
        process = bucket.start("killed")
        bucket.until("killed", moment, process)
        process.kill()
        process.wait()
    assert bucket.run("killed") == quiet
