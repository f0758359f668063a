"""What tests share: Ray kept to this machine, and small models that are made on the spot."""

from __future__ import annotations

import os

# Ray reads these when it is first imported.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # misnamed: on Linux it keeps every Ray port on 127.0.0.1
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_SCHEDULER_EVENTS="0",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("RAY_ADDRESS", None)
