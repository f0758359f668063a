"""The place of a run's output: that it can be written, and that the run there, if there is one, is this one."""

from __future__ import annotations

from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ResultsConfig
from datainf_ray.request.identity import difference
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import refuse_another_index
from datainf_ray.runs.record import RUN_FILE, RunRecord, read_record

_TOP_K = ResultsConfig().top_k


def check_output(
    directory: RunDirectory, index: RunDirectory | None, identity: dict[str, Any], fingerprint: str
) -> None:
    """Try the output, and the place where a gradient index is written. Raises `RequestError` before anything is begun.

    `identity` and `fingerprint` are those of the run that is asked for.
    """
    try:
        there = read_record(directory) if directory.exists(RUN_FILE) else None
    except RequestError as error:
        raise RequestError(error.key, error.value, error.problem, "use another output") from None
    except Exception:  # every storage library has its own classes; check_writable says what is wrong
        there = None
    directory.check_writable()
    if there is not None:
        refuse_another(directory, there, identity, fingerprint)
    if index is not None:
        if not index.url.startswith(f"{directory.url}/"):  # in there it has been tried
            index.check_writable()
        refuse_another_index(index, fingerprint if there is None else there.fingerprint)


def refuse_another(directory: RunDirectory, there: RunRecord, identity: dict[str, Any], fingerprint: str) -> None:
    """Raises `RequestError` where the run whose record is `there` is not the one of this identity.

    Their fingerprints may differ although it is: that of a run is what the version called it that began it. A run that
    is done lists as many rows as it lists; `datainf top -k` finds more, so that another `results.top_k` asks for
    nothing new of a run that has scores, and a smaller one of none.
    """
    if there.fingerprint == fingerprint:
        return
    what = difference(there.identity, _listing_as(there, identity))
    if what is not None:
        remedy = "use another output, or remove that one"
        raise RequestError("output", directory.url, f"holds another run: {what}", remedy)


def _listing_as(there: RunRecord, identity: dict[str, Any]) -> dict[str, Any]:
    """The identity that is asked for, with the `results.top_k` of a run that is done and can answer for it."""
    results, asked = there.config.get("results", {}), identity.get("settings", {})
    listed = results.get("top_k", _TOP_K)
    if there.state != "done" or not (results.get("scores") or asked.get("results.top_k", _TOP_K) <= listed):
        return identity
    return identity | {"settings": asked | {"results.top_k": listed}}
