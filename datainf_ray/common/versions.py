"""The versions that results may depend on, as a run notes them and `datainf check` compares them."""

from __future__ import annotations

import platform
from importlib.metadata import version

__version__ = "0.1.0"  # here, because in a job whose working directory is a checkout this package is not installed

PACKAGES = ("torch", "transformers", "peft", "ray", "pyarrow")


def versions() -> dict[str, str]:
    """Those of this process: this package's, those of `PACKAGES`, and Python's."""
    others = {name: version(name) for name in PACKAGES}
    return {"datainf-ray": __version__, **others, "python": platform.python_version()}
