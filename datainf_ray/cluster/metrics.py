"""What Ray's metrics show of runs: on every node's Prometheus endpoint, and in jobs/grafana.json.

Ray puts `ray_` in front of the names, and `_total` behind those of counters.
"""

from __future__ import annotations

from urllib.parse import quote

from ray.util.metrics import Counter, Gauge

DONE, RETRIED, FAILED = "done", "retried", "failed"

_RUN = ("run",)
_AS_IT_IS = "".join(map(chr, range(0x20, 0x7F)))  # printable ASCII


def tag(text: str) -> str:
    """A tag's value, for which Ray takes ASCII alone: what is not printable ASCII is percent-encoded, as in a URL."""
    return quote(text, safe=_AS_IT_IS, errors="surrogateescape")


class DriverMetrics:
    """What the driver knows: what became of chunks, and how many workers there are."""

    def __init__(self, run: str) -> None:
        self._chunks = Counter(
            "datainf_chunks", "Chunks by outcome: done, retried (lost with a worker), failed.", (*_RUN, "outcome")
        )
        self._workers = Gauge("datainf_workers", "Workers that are up.", _RUN)
        for metric in (self._chunks, self._workers):
            metric.set_default_tags({"run": tag(run)})

    def chunk(self, outcome: str) -> None:
        self._chunks.inc(1, {"outcome": outcome})

    def workers(self, count: int) -> None:
        self._workers.set(count)


class WorkerMetrics:
    """What a worker knows of its own work."""

    def __init__(self, run: str, worker: str) -> None:
        tags = (*_RUN, "worker")
        self._rows = Counter("datainf_rows", "Rows swept, by sweep.", (*tags, "sweep"))
        self._tokens = Counter("datainf_tokens", "Tokens swept, without padding, by sweep.", (*tags, "sweep"))
        self._rate = Gauge("datainf_tokens_per_second", "Tokens per second of computing, in the last chunk.", tags)
        self._waited = Counter("datainf_wait_seconds", "Seconds of idling because rows were still being read.", tags)
        self._memory = Gauge("datainf_gpu_memory_bytes", "Memory that the worker has of its GPUs; none on a CPU.", tags)
        for metric in (self._rows, self._tokens, self._rate, self._waited, self._memory):
            metric.set_default_tags({"run": tag(run), "worker": tag(worker)})

    def chunk(self, sweep: str, rows: int, tokens: int, computed: float, waited: float, gpu_bytes: int | None) -> None:
        """A chunk is done; `computed` and `waited` in seconds."""
        for counter, amount in ((self._rows, rows), (self._tokens, tokens)):
            if amount:  # Ray refuses to add nothing
                counter.inc(amount, {"sweep": sweep})
        if computed:
            self._rate.set(tokens / computed)
        if waited > 0:
            self._waited.inc(waited)
        if gpu_bytes is not None:
            self._memory.set(gpu_bytes)
