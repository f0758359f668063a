"""The configurations in jobs/ are ones that this version takes, or refuses for the reason that they give."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest
import yaml

from datainf_ray.config import load_config
from datainf_ray.tasks.register import task_of

JOBS = Path(__file__).parents[1] / "jobs"
OTHERS = {"cluster-gcp.yaml", "rayjob.yaml", "runtime-env.yaml"}  # no runs


@pytest.mark.parametrize("name", sorted(p.name for p in JOBS.glob("*.yaml") if p.name not in OTHERS))
def test_a_configuration_can_be_used(name: str) -> None:
    config = load_config(JOBS / name)
    assert config.output.startswith("s3://")
    assert task_of(config.model)


def test_the_runtime_environment_installs_the_checkout_with_its_versions() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((JOBS / "runtime-env.yaml").read_text()))
    lines = [line.removeprefix("-c ") for line in environment.pip_config()["packages"]]
    root = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert lines == [f"{root}/constraints.txt", f"{root}[s3]"]
    assert (JOBS.parent / "constraints.txt").is_file()
    assert (JOBS.parent / "pyproject.toml").is_file()


@pytest.mark.parametrize("script", sorted(str(p.relative_to(JOBS)) for p in JOBS.rglob("*.py")))
def test_a_script_imports_what_there_is(script: str) -> None:
    """Wherever in the script: what a benchmark imports in a function is missed only when that table is asked for."""
    for node in ast.walk(ast.parse((JOBS / script).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "datainf_ray":
            module = importlib.import_module(str(node.module))
            names = [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
            # a module of a package is no attribute of it before somebody has imported it
            assert [name for name in names if importlib.util.find_spec(name) is None] == [], node.lineno
