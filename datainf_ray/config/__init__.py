"""What can be asked for, from YAML, a dict or Python. A wrong key or value is a `RequestError` of one line."""

from datainf_ray.config.keys import (
    PICTURES,
    ClusterConfig,
    DiffusionConfig,
    GenerateConfig,
    MethodConfig,
    ModelConfig,
    QueriesConfig,
    ResultsConfig,
    RowsConfig,
    RunConfig,
)
from datainf_ray.config.load import load_config, options_among, parse_assignment

__all__ = [
    "PICTURES",
    "ClusterConfig",
    "DiffusionConfig",
    "GenerateConfig",
    "MethodConfig",
    "ModelConfig",
    "QueriesConfig",
    "ResultsConfig",
    "RowsConfig",
    "RunConfig",
    "load_config",
    "options_among",
    "parse_assignment",
]
