"""What is tried again, and what is told at once."""

from __future__ import annotations

import errno

import pytest
import tenacity

from datainf_ray.common import storage
from datainf_ray.common.storage import is_transient, patience, persistently


class ClientError(Exception):
    """As HTTP clients have them."""

    def __init__(self, status: int) -> None:
        self.status_code = status


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate."),  # s3fs: 503, 409
        OSError(errno.EREMOTEIO, "We encountered an internal error."),  # s3fs: 500
        TimeoutError("read"),
        ConnectionResetError("peer"),
        ClientError(429),
        ClientError(503),
    ],
)
def test_what_passes(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("gone"),
        FileExistsError("there"),
        PermissionError("Access Denied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.ESTALE, "it has changed since it was planned"),
        ClientError(404),
        ClientError(403),
        ValueError("not Parquet"),
        KeyError("x"),
    ],
)
def test_what_lasts(error: Exception) -> None:
    assert not is_transient(error)


def test_clients_own_errors_pass_by_what_they_are() -> None:
    import aiohttp
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError

    assert is_transient(EndpointConnectionError(endpoint_url="http://x"))
    assert is_transient(ReadTimeoutError(endpoint_url="http://x"))
    assert is_transient(aiohttp.ServerDisconnectedError())
    assert is_transient(aiohttp.ClientPayloadError("incomplete"))
    assert not is_transient(NoCredentialsError())


def test_it_goes_on_until_it_succeeds_and_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PAUSE", 0.001)
    left = [3]

    def operation() -> str:
        left[0] -= 1
        if left[0]:
            raise TimeoutError("slow")
        return "there"

    assert persistently(operation) == "there"
    left[0] = 10**9
    with patience(0.02), pytest.raises(TimeoutError, match="slow"):
        persistently(operation)


def test_what_lasts_is_not_tried_again() -> None:
    calls = []

    def operation() -> None:
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        persistently(operation)
    assert len(calls) == 1


def test_pauses_grow_and_are_drawn_at_random() -> None:
    wait = tenacity.wait_random_exponential(storage._PAUSE, max=storage._LONGEST)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = 20
    drawn = {wait(state) for _ in range(20)}
    assert len(drawn) == 20
    assert max(drawn) <= storage._LONGEST
