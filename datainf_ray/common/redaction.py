"""Credentials, which no text that is reported, logged or written may hold. Other libraries' messages may hold some."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SHORTEST = 8  # characters of a value that is looked for in texts: a shorter one stands in too many innocent ones
#: Names of options and of environment variables whose values are credentials.
_NAMES = re.compile(
    r"secret|token|passw|credential|connection_?string|(account|access|private|api)_?key|(^|_)(key|sas|cookie)$|authoriz",
    re.IGNORECASE,
)
#: In an address: the password of user:password@host, and the parameters that sign it (S3, GCS and Azure's SAS).
_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+@")
_SIGNATURE = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:signature|token|secret|password|credential)|sig|key|accountkey|x-goog-credential)=)[^&;\s'\"]+"
)
#: The key in a connection string of Azure's.
_IN_CONNECTION = re.compile(r"(?i)(?:AccountKey|SharedAccessSignature)=([^;]{8,})")

_known: set[str] = set()


def keep_secret(options: Mapping[str, Any]) -> None:
    """From now on `redacted` replaces the credentials among `options`, which may be nested."""
    _known.update(_secrets(options))


def redacted(text: str) -> str:
    """`text` with every credential that is known, or can be seen to be one, replaced by `***`."""
    environment: set[str] = set().union(*(_secrets({name: value}) for name, value in os.environ.items()))
    for secret in sorted(_known | environment, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _SIGNATURE.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", text))


def names_secret(text: str) -> bool:
    """Whether a name of a credential stands in `text`."""
    return _NAMES.search(text) is not None


def redacted_tree(value: Any) -> Any:
    """JSON-like values with every text `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(inner) for inner in value]
    return value


def _secrets(options: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= _secrets(value)
        elif isinstance(value, str) and len(value) >= _SHORTEST and _NAMES.search(name):
            found.add(value)
            found.update(_IN_CONNECTION.findall(value))  # which may be told without the rest
    return found
