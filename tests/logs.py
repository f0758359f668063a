"""What a local Ray logs while a command is at work. When the command ends well its logs are removed."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path


def logged(process: subprocess.Popen[str], folder: str) -> tuple[str, str, list[bytes]]:
    """Standard output and error of a process until its end, and the logs that it had below `folder`, RAY_TMPDIR."""
    seen: dict[Path, bytes] = {}
    while process.poll() is None:
        for at, _, names in os.walk(folder):
            for file in [Path(at, name) for name in names if "logs" in Path(at).parts]:
                with suppress(OSError):  # gone, or a socket
                    seen[file] = file.read_bytes()
        time.sleep(0.1)
    return *process.communicate(), list(seen.values())
