"""The methods there are. A new one is a file in this folder, and a line here."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datainf_ray.influence.method import Method

#: By name, the module that has the method's record, `METHOD`. It is loaded when it is asked for: that loads torch.
_MODULES = {
    "datainf": "datainf",
    "hessian-free": "hessian_free",
    "cosine": "cosine",
    "exact": "exact",
    "lissa": "lissa",
    "representation": "representation",
}

NAMES = tuple(_MODULES)


@cache
def method_named(name: str) -> Method:
    """The method of this name. Raises `KeyError` where there is none."""
    method: Method = importlib.import_module(f"{__package__}.{_MODULES[name]}").METHOD
    return method
