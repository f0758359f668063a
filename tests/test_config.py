"""Every key of the configuration is read somewhere, and every one is part of what makes a run that run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import BaseModel

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.config import RunConfig, load_config, parse_assignment
from datainf_ray.request.identity import settings

MINIMAL = {
    "model": {"base": "org/base", "adapter": "./adapter"},
    "train": {"path": "rows.jsonl"},
    "queries": {"path": "queries.jsonl"},
    "output": "runs/a",
}

#: Another value for every key that can have one in this version.
OTHER: dict[str, Any] = {
    "model.task": "sequence-classification", "model.dtype": "bfloat16", "model.quantization": "8bit",
    "model.trust_remote_code": True, "train.columns": {"text": "body"}, "train.id": "name", "train.max_length": 9,
    "queries.columns": {"text": "body"}, "queries.id": "name", "queries.max_length": 9, "queries.group": "all",
    "method.name": "hessian-free", "method.damping": 0.2, "method.loss": "sum", "cluster.chunk_rows": 7,
    "cluster.batch_tokens": 7, "index": True, "index_projection": 7,
    "index_dtype": "bfloat16", "method.curvature_rows": 3, "results.top_k": 7, "results.scores": False,
    "results.blocks": True, "seed": 7,
}  # fmt: skip
ONE_VALUE = {"results.self_influence": True}  # anything else is refused by name
NEEDS = {"index_projection": {"index": True}}


def leaves(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key, and how it is marked."""
    for name, field in part.model_fields.items():
        inner = field.annotation
        # Python 3.10 takes dict[str, str] for a class
        if get_origin(inner) is None and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{name}.")
        else:
            yield prefix + name, field.json_schema_extra or {}


KEYS = dict(leaves(RunConfig))


@pytest.mark.parametrize("key", list(KEYS))
def test_every_key_matters(key: str) -> None:
    name = key.rpartition(".")[2]
    if key in ONE_VALUE:
        with pytest.raises(RequestError, match="not available in this version"):
            load_config(MINIMAL, **{key: ONE_VALUE[key]})
    elif "place" in KEYS[key]:  # known by content instead: `test_attribute` changes the rows, and is refused
        pass
    elif "incidental" in KEYS[key]:
        source = "".join(
            p.read_text() for p in Path(datainf_ray.__file__).parent.rglob("*.py") if p.name != "config.py"
        )
        assert re.search(rf"\.{name}\b", source), "read nowhere"
    else:
        with_ = NEEDS.get(key, {})
        before, after = (settings(load_config(MINIMAL, **more)) for more in (with_, with_ | {key: OTHER[key]}))
        assert after == {**before, key: OTHER[key]}
        assert key not in before  # what is as it is by default says nothing: a key that is new changes no earlier run


def test_yaml_dicts_and_keywords_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {base: org/base, adapter: ./adapter}\ntrain: {path: rows.jsonl}\n"
                    "queries: {path: queries.jsonl}\noutput: runs/b\n")  # fmt: skip
    want = load_config(MINIMAL)
    assert load_config(path, output="runs/a") == want
    assert load_config(want, **{"cluster.max_workers": 2}).cluster.max_workers == 2
    assert (
        load_config(want, cluster={"max_workers": 2}).cluster
        == load_config(MINIMAL, **{"cluster.max_workers": 2}).cluster
    )
    assert load_config(path, **dict([parse_assignment("train.path=[a.jsonl, b.jsonl]")])).train.paths == (
        "a.jsonl",
        "b.jsonl",
    )


def test_defaults_are_what_the_documentation_says() -> None:
    config = load_config(MINIMAL)
    assert (config.method.name, config.method.damping, config.method.loss) == ("datainf", 0.1, "mean")
    assert (config.cluster.chunk_rows, config.cluster.batch_tokens, config.cluster.min_workers) == ("auto", "auto", 0)
    assert (config.results.top_k, config.results.scores, config.results.blocks) == (100, True, False)
    assert (config.gradients, config.index, config.seed) == ("auto", None, 0)
