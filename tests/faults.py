"""Storage and models that go wrong, made for tests."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server

_BODY = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>made to fail</Message></Error>'
#: What S3 says when it is not well.
TRANSIENT = (
    ("500 Internal Server Error", b"InternalError"),
    ("503 Slow Down", b"SlowDown"),
    ("409 Conflict", b"OperationAborted"),
)
DENIED = ("403 Forbidden", b"AccessDenied")

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Unwell:
    """An S3 server before which some requests fail: some before they are done, and some after.

    `share` of all requests fail with a transient error. With `read_only` every write is refused.
    """

    def __init__(self, inner: Wsgi, seed: int) -> None:
        self.inner, self.chance, self.lock = inner, random.Random(seed), threading.Lock()
        self.share, self.read_only = 0.0, False
        self.failed = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            fails = self.chance.random() < self.share
            after = self.chance.random() < 0.5
            writes = environ["REQUEST_METHOD"] == "PUT"
            answer = self.chance.choice(TRANSIENT if writes else TRANSIENT[:2])  # 409 is an answer to writes alone
            self.failed += fails
        if self.read_only and environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            return _refused(environ, start_response, *DENIED)
        if not fails:
            return self.inner(environ, start_response)
        if after:
            list(self.inner(environ, lambda *values: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return _refused(environ, start_response, *answer)


def _refused(environ: dict[str, Any], start_response: Callable[..., Any], status: str, code: bytes) -> Iterable[bytes]:
    body = _BODY % code if environ["REQUEST_METHOD"] != "HEAD" else b""  # to which no answer has a body
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


class Guarded:
    """An S3 server that lets those into a bucket who sign with the bucket's own access key, and nobody else.

    `closed` buckets let nobody in.
    """

    def __init__(self, inner: Wsgi, keys: dict[str, str]) -> None:
        self.inner, self.keys = inner, keys  # bucket: access key
        self.closed: set[str] = set()
        self.refused = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        bucket = environ["PATH_INFO"].split("/")[1]
        signed = environ.get("HTTP_AUTHORIZATION", "")
        if bucket in self.closed or f"Credential={self.keys.get(bucket)}/" not in signed:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            self.refused += 1
            return _refused(environ, start_response, *DENIED)
        return self.inner(environ, start_response)


@contextmanager
def unwell_s3(seed: int = 0) -> Iterator[tuple[str, Unwell]]:
    """The URL of an S3 server (moto), and what decides how it fails; it is well at first."""
    app = Unwell(_moto(), seed)
    with _served(app) as url:
        yield url, app


@contextmanager
def guarded_s3(keys: dict[str, str]) -> Iterator[tuple[str, Guarded]]:
    """The URL of an S3 server (moto), and what guards its buckets, each by an access key."""
    app = Guarded(_moto(), keys)
    with _served(app) as url:
        yield url, app


@contextmanager
def careless_s3() -> Iterator[str]:
    """The URL of an S3 server (moto) that writes over what is there, whatever is asked: it knows no If-None-Match."""
    inner = _moto()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return inner(environ, start_response)

    with _served(app) as url:
        yield url


def _moto() -> Wsgi:
    from moto.server import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


@contextmanager
def _served(app: Wsgi) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


_TRAP = """
import os

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class TrapConfig(LlamaConfig):
    model_type = "trap"


class TrapForCausalLM(LlamaForCausalLM):
    config_class = TrapConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_pre_hook(spring)


def spring(module, inputs):
    ids = inputs[0]
    if (ids == 3).any():  # <unk>
        os._exit(1)
    if ids.shape[0] > 1 and ids.numel() > %d:
        raise torch.OutOfMemoryError("made to be too small")
"""


def set_trap(base: Path, most_tokens: int) -> None:
    """Make a saved Llama end the process that computes an unknown word, and have no room for larger batches.

    It comes with Python code of its own, and so needs `trust_remote_code`.
    """
    _give_code(base, _TRAP % most_tokens)


_HUNGER = """
import os
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class TrapConfig(LlamaConfig):
    model_type = "trap"


class TrapForCausalLM(LlamaForCausalLM):
    config_class = TrapConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_pre_hook(eat)


def eat(module, inputs):
    if inputs[0].numel() <= %d:
        return
    once = %r
    if once is not None:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    held = []
    for _ in range(32):
        held.append(torch.ones(2**26))  # 256 MiB
        time.sleep(0.1)
    raise RuntimeError("8 GiB were too little for Ray's memory monitor")
"""


def set_hunger(base: Path, most_tokens: int, once: Path | None = None) -> None:
    """Make a saved Llama take gigabytes of memory for batches of more than `most_tokens`, until its worker is ended.

    With `once` only the first time: then that file is there.
    """
    _give_code(base, _HUNGER % (most_tokens, None if once is None else str(once)))


def _give_code(base: Path, code: str) -> None:
    """Make a saved Llama a model with code of its own."""
    (base / "modeling_trap.py").write_text(code)
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "trap",
        "architectures": ["TrapForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_trap.TrapConfig",
            "AutoModelForCausalLM": "modeling_trap.TrapForCausalLM",
        },
    }
    (base / "config.json").write_text(json.dumps(config))
