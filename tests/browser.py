"""A page in a real headless Chromium, driven over a pipe by the DevTools protocol; nothing of the page is replaced."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


class Page:
    """One page; `events` are all that the browser has told of it."""

    def __init__(self, send: Any, receive: Any) -> None:
        self._send, self._receive, self._number = send, receive, 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self.events.append(told)

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser is gone"
            data += byte
        return dict(json.loads(data))

    def open(self, file: Path) -> None:
        """Go to a file, and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=file.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, code: str) -> Any:
        """The value of an expression on the page; a promise's when it is kept."""
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def looks(self, width: int, scheme: str) -> None:
        """Give the window a width in pixels, and the user's scheme, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """The events of some kinds."""
        return [event["params"] for event in self.events if event.get("method") in methods]


@contextmanager
def browsing(file: Path) -> Iterator[Page]:
    """The file as a page; skips the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def as_three_and_four() -> None:
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]  # 3 and 4 may be among ours
        for at, end in enumerate(theirs, 3):
            os.dup2(end, at)

    profile = tempfile.mkdtemp()
    process = subprocess.Popen(
        [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}"], preexec_fn=as_three_and_four, close_fds=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with os.fdopen(ours_out, "wb") as send, os.fdopen(ours_in, "rb") as receive:
            page = Page(send, receive)
            page.open(file)
            yield page
    finally:
        process.kill()
        process.wait(10)
        shutil.rmtree(profile, ignore_errors=True)
