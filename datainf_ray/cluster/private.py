"""All that is used of Ray's private modules, and why: a new version of Ray may change it without a word."""

from __future__ import annotations

from ray._private.label_utils import validate_label_selector
from ray._private.state import state


def wrong_selector(selector: dict[str, str] | None) -> str | None:
    """What is wrong with a label selector; None where it is right.

    Ray itself checks selectors only when a worker is asked for, and raises its own error then: too late for a request.
    """
    return validate_label_selector(selector)


def draining_nodes() -> frozenset[str]:
    """The ids of nodes that are about to be taken away, and are to get no new work.

    `ray.nodes()` does not tell of them. Ray's own libraries (Train, Serve) learn of them here.
    """
    return frozenset(state.get_draining_nodes())
