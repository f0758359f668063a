"""The configurations in jobs/ are ones that this version takes, or refuses for the reason that they give."""

from __future__ import annotations

from pathlib import Path

import pytest

from datainf_ray.config import load_config
from datainf_ray.errors import RequestError

JOBS = Path(__file__).parents[1] / "jobs"
LATER = {"text-to-image.yaml": "model.task: 'text-to-image' is not available in this version"}
OTHERS = {"cluster-gcp.yaml", "rayjob.yaml"}  # no runs: tests/cluster/test_clouds.py has them


@pytest.mark.parametrize("name", sorted(p.name for p in JOBS.glob("*.yaml") if p.name not in OTHERS))
def test_a_configuration_can_be_used(name: str) -> None:
    if name in LATER:
        with pytest.raises(RequestError, match=LATER[name]):
            load_config(JOBS / name)
        assert "Not yet: this version refuses" in (JOBS / name).read_text()
    else:
        config = load_config(JOBS / name)
        assert config.output.startswith("s3://")
