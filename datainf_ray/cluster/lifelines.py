"""What a process in Ray depends on, whether it is there still, and what is said where it is not."""

from __future__ import annotations

import socket
from dataclasses import dataclass

KNOCK = 1.0  #: seconds for which an answer is waited for
SHARE = 0.9  #: of the time that Ray waits for a GCS: what we wait
AGAIN = "run the same command again to go on"


@dataclass(frozen=True)
class Lifelines:
    """The raylet and the GCS that a process depends on."""

    raylet: str  #: the node's own process, by the Unix socket that it listens at
    head: str  #: HOST:PORT of the cluster's GCS
    patience: float  #: seconds without the GCS after which Ray ends the process
    logs: str  #: the folder of Ray's logs on this machine
    local: bool = False  #: this Ray was started by the run, and will not come back

    def no_raylet(self) -> str:
        """Why the run cannot go on without the raylet, and what to do, in a line."""
        if self.local:
            return f"the local Ray has ended (its raylet is gone; its logs are in {self.logs}); {AGAIN}"
        return f"the Ray node on {socket.gethostname()} that this process is attached to has ended; {AGAIN}"

    def no_head(self) -> str:
        """The same of the GCS."""
        if self.local:
            return f"the local Ray has ended (its GCS is gone; its logs are in {self.logs}); {AGAIN}"
        return f"the head of the Ray cluster at {self.head} has not answered for {SHARE * self.patience:.0f} s; {AGAIN}"

    def raylet_ended(self) -> bool:
        """Whether nobody listens at the raylet's socket any more."""
        try:
            with socket.socket(socket.AF_UNIX) as raylet:
                raylet.settimeout(KNOCK)
                raylet.connect(self.raylet)
        except OSError:
            return True
        return False

    def head_answers(self) -> bool:
        """Whether a process listens at the GCS's address."""
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
        except OSError:
            return False
        return True
