"""Servers that refuse, fail or are not there: each is told for what it is, wherever its address stands."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from datainf_ray.cluster.join import join
from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import is_transient, patience, store_of
from datainf_ray.config import ClusterConfig, ModelConfig, load_config
from datainf_ray.corpus.files import open_file
from datainf_ray.corpus.find import find_files
from datainf_ray.model.files import adapter_folder, local_folder
from datainf_ray.request.understand import begun
from datainf_ray.runs.directory import RunDirectory

pytestmark = pytest.mark.cluster

ROWS = b'{"text": "a"}\n'


class _Server(BaseHTTPRequestHandler):
    """`/403/x` is answered by 403; a bucket `b-403-code` by S3's error of that code; `/200/x` is there."""

    def do_GET(self) -> None:
        first = self.path.split("/")[1].partition("?")[0]
        status, _, code = first.removeprefix("b-").partition("-")
        body = ROWS if status == "200" else f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(int(status))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture(scope="module")
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


#: Whatever reads from an address, and the key under which it was given.
READERS: dict[str, Callable[[str], Any]] = {
    "config": lambda url: load_config(f"{url}/c.yaml"),
    "train.path": lambda url: find_files([f"{url}/rows.jsonl"], "train.path"),
    "model.adapter": lambda url: adapter_folder(ModelConfig(base="x", adapter=f"{url}/adapter")),
    "model.base": lambda url: local_folder(f"{url}/base", "model.base"),
    "output": lambda url: begun(RunDirectory(f"{url}/run")),
}
DENIED = "authentication failed: "
GIVEN = "(credentials come from storage_options.{} or the environment)"
AWAY = "Cannot connect to host"


@pytest.mark.parametrize("key", READERS)
@pytest.mark.parametrize(
    ("where", "said"),
    [("401", DENIED), ("403", DENIED), ("404", "no such"), ("500", "500, "), ("", AWAY), ("unknown", AWAY)],
)
def test_a_web_address_is_told_for_what_it_is(key: str, where: str, said: str, server: str, nobody: str) -> None:
    url = "http://nowhere.invalid" if where == "unknown" else f"{server}/{where}" if where else nobody
    if (key, where) == ("output", "404"):
        assert READERS[key](url) is False
        return
    with patience(0.1), pytest.raises(RequestError) as caught:
        READERS[key](url)
    line = str(caught.value)
    assert line.startswith(f"{key}: {url}/")
    assert said in line
    assert ("no such" in line) == (where == "404")
    assert (GIVEN.format("https") in line) == (where in ("401", "403"))
    assert ("the server cannot be reached" in line) == (said == AWAY and key != "output")
    assert line.count(said) == 1


def test_a_web_server_is_read_from(server: str) -> None:
    (file,) = find_files([f"{server}/200/rows.jsonl"], "train.path")
    assert (file.size, file.name) == (len(ROWS), "rows.jsonl")
    with open_file(file) as rows:
        assert rows.read() == ROWS


def test_a_server_that_is_not_trusted_is_not_asked_again(server: str) -> None:
    fs, path = store_of(server.replace("http:", "https:") + "/200/x", {})
    with pytest.raises(OSError, match="SSL") as caught:
        fs.info(path)
    assert isinstance(caught.value, ssl.SSLError | OSError)
    assert not is_transient(caught.value)


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", ""])
def test_a_bucket_that_lets_nobody_in_says_that_it_is_about_credentials(
    code: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "testing-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    s3fs.S3FileSystem.clear_instance_cache()
    for key in ("config", "train.path", "model.adapter", "model.base"):
        with patience(0.1), pytest.raises(RequestError) as caught:
            READERS[key](f"s3://b-403-{code or 'Other'}")
        assert DENIED in str(caught.value)
        assert GIVEN.format("s3") in str(caught.value)
        assert "testing-secret" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("where", ["closed", "unknown"])
def test_a_cluster_that_is_not_there(scheme: str, where: str, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have one
    address = scheme + ("nowhere.invalid:6379" if where == "unknown" else nobody.removeprefix("http://"))
    with pytest.raises(RequestError) as caught:
        join(ClusterConfig(address=address))
    line = str(caught.value)
    assert line.startswith(f"cluster.address: {address}: cannot be reached: ")
    assert line.endswith("; give HOST:PORT of a cluster's head that is up, or no address for a local Ray")
