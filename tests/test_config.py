"""Every key of the configuration is read somewhere, and every one is part of what makes a run that run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import BaseModel

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.common.plain_yaml import read_yaml
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
    "model.chat_template_kwargs": {"enable_thinking": False},
    "model.trust_remote_code": True, "model.blocks": ["*.lora_A.*"],
    "train.columns": {"text": "body"}, "train.id": "name", "train.max_length": 9,
    "train.quoting": "none", "queries.quoting": "none", "train.targets": "all", "queries.targets": "completion",
    "queries.columns": {"text": "body"}, "queries.id": "name", "queries.max_length": 9, "queries.group": "all",
    "method.name": "hessian-free", "method.damping": 0.2, "method.loss": "sum", "cluster.chunk_rows": 7,
    "cluster.batch_tokens": 7, "index": True, "index_projection": 7,
    "index_dtype": "bfloat16", "method.curvature_rows": 3, "results.top_k": 7, "results.scores": False,
    "results.blocks": True, "results.by": "source", "results.self_influence": True, "results.tokens": True, "seed": 7,
    "method.tolerance": 1e-4, "method.iterations": 7, "method.scale": 2.5,
    "model.adapter_weights": [2, 0.5], "model.lora_alpha": 4, "diffusion.timesteps": [25, 225],
    "diffusion.noise": "shared", "diffusion.combine": "mean", "diffusion.resolution": 256, "diffusion.crop": "none",
    "diffusion.generate": {"steps": 4, "guidance": 3.5, "seed": 1}, "diffusion.min_snr_gamma": 5.0,
    "diffusion.noise_offset": 0.1, "diffusion.prior_loss_weight": 0.5,
}  # fmt: skip
PICTURES = {"model.task": "text-to-image"}
NEEDS = {"index_projection": {"index": True}, "model.adapter_weights": {"model.adapter": ["a", "b"]}} | dict.fromkeys(
    ("model.lora_alpha", *(key for key in OTHER if key.startswith("diffusion."))), PICTURES
)


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
    if "place" in KEYS[key]:  # known by content instead: `test_attribute` changes the rows, and is refused
        pass
    elif "incidental" in KEYS[key]:
        source = "".join(
            p.read_text() for p in Path(datainf_ray.__file__).parent.rglob("*.py") if "config" not in p.parts
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


#: What may stand in YAML for any key, and in a program's dict.
BAD: list[Any] = [
    "many", -1, 0, 1.5, [], {}, True, None, "", [1], [None], [[]], {"a": 1}, {"a": {"b": 1}}, {1: 2}, "1e400", 1e300,
    10**400, float("inf"), float("nan"), "x" * 5000, "a\nb\x1b[31m\u202e", list(range(5000)), b"x", object(),
]  # fmt: skip
JARGON = re.compile(r"nput should|tuple\[|list\[|dict\[|union|literal|Value error|validation|type=|\x1b|\u202e")


@pytest.mark.parametrize("key", [*KEYS, "model", "train", "method", "diffusion", "cluster", "results"])
def test_a_value_of_another_kind_is_one_line_that_says_what_is_possible(key: str) -> None:
    refused = 0
    for value in BAD:
        try:
            load_config(MINIMAL, **{key: value})
        except RequestError as error:
            line = str(error)
            refused += 1
            assert line.startswith(key), line
            assert "\n" not in line
            assert len(line) <= 300, line
            assert not JARGON.search(line), line
            assert "rows.jsonl" not in line  # the whole of the configuration
    assert refused >= (4 if key in ("storage_options", "model.base", "output") else 7)


SAID = {
    "cluster.chunk_rows=many": "cluster.chunk_rows: 'many': a whole number of at least 1, or auto",
    "cluster.batch_tokens=0": "cluster.batch_tokens: 0: a whole number of at least 1, or auto",
    "cluster.max_workers=true": "cluster.max_workers: true: a whole number of at least 1, or null",
    "cluster.start_timeout=.inf": "cluster.start_timeout: inf: a number above 0 and of at most 1e+09, or null",
    "cluster.checkpoint_seconds=1e400": "cluster.checkpoint_seconds: inf: a number from 0 to 1e+09",
    "cluster.label_selector={a: [b]}": "cluster.label_selector.a: ['b']: a text",
    "cluster.fallback_selector=x": "cluster.fallback_selector: 'x': a mapping of texts to texts, or null",
    "index=1": "index: 1: a text, true, false, or null",
    "train.path={a: b}": "train.path: {'a': 'b'}: a text, or a list of texts",
    "train.path=[a, 1]": "train.path.1: 1: a text",
    "model.dtype=int8": "model.dtype: 'int8': auto, float32, bfloat16 or float16",
    "model.quantization=2bit": "model.quantization: '2bit': 8bit, 4bit or null",
    "model.trust_remote_code='true'": "model.trust_remote_code: 'true': true or false",
    "model=base": "model: 'base': a mapping of base, adapter, adapter_weights, blocks, task, dtype, quantization, ",
    "output=": "output: null: a text that is not empty",
    "method.damping=1e-40": "method.damping: 1e-40: a number from 1e-12 to 1e+12",
    "method.damping=1e39": "method.damping: 1e+39: a number from 1e-12 to 1e+12",
    "seed=9007199254740993": "seed: 9007199254740993: is beyond 9,007,199,254,740,992",
    "storage_options={s3: AKIAIOSFODNN7EXAMPLE}": "storage_options.s3: a mapping of texts to values",
    "diffusion.timesteps=0": "diffusion.timesteps: 0: a whole number from 1 to 1000, or a list of whole numbers",
    "diffusion.timesteps=[25, -1]": "diffusion.timesteps.1: -1: a whole number of at least 0",
    "diffusion.timesteps=[25, 225, 25]": "diffusion.timesteps: [25, 225, 25]: names 25 twice",
    "diffusion.generate.step=4": "diffusion.generate.step: unknown key; did you mean 'steps'?",
    "diffusion.generate.steps=0": "diffusion.generate.steps: 0: a whole number from 1 to 1000",
    "diffusion.generate=true": "diffusion.generate: true: a mapping of steps, guidance, seed, or null",
    "diffusion.noise=none": "diffusion.noise: 'none': row or shared",
    "diffusion.combine=mean": "diffusion.combine: mean: has no effect on model.task causal-lm; it belongs to ",
    "model.lora_alpha=4": "model.lora_alpha: 4.0: has no effect on model.task causal-lm; it belongs to text-to-image",
    "cluster={min_workers: 5, max_workers: 2}": "cluster.min_workers: 5: is more than max_workers, 2",
    "index_projection=4": "index_projection: 4: there is no index; use index: true with it",
    "cluster={chunk_rows: [], seed: 1, gpus_per_worker: x}": "cluster.seed: unknown key; known are address, min_",
    "cluster={chunk_rows: [], gpus_per_worker: x}":
        "cluster.gpus_per_worker: 'x': a whole number of at least 0, or null (and 1 more)",
}  # fmt: skip


@pytest.mark.parametrize("assignment", SAID)
def test_the_line_of_a_wrong_value(assignment: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_config(MINIMAL, **dict([parse_assignment(assignment)]))
    assert str(caught.value).startswith(SAID[assignment])


#: What is not guessed: the YAML, the line, and what is said.
AMBIGUOUS = {
    "seed: 1\nseed: 2": (2, "'seed' stands twice as a key of the same mapping; keep one of them"),
    "train: {path: a, path: b}": (1, "'path' stands twice"),
    "a:\n  - {b: 1,\n     b: 1}": (3, "'b' stands twice"),
    "on: 1": (1, "'on' is a text for some readers of YAML and true or false for others; write true or false, or quote"),
    "a: Yes": (1, "'Yes' is a text for some"), "a: [off]": (1, "'off' is a text for some"),
    "a: {text: y}": (1, "'y' is a text"), "a: N": (1, "'N' is a text"), "n: 1": (1, "'n' is a text"),
    "a: 1\nb: 010": (2, "'010' is an octal number for some readers of YAML and not for others; write it without"),
    "a: 0o10": (1, "'0o10' is an octal"), "a: -007": (1, "'-007' is an octal"), "a: 08": (1, "'08' is an octal"),
    "a: 30:00": (1, "'30:00' is a number of base 60"), "a: 1:30.5": (1, "'1:30.5' is a number of base 60"),
    "1: a": (1, "'1' is a key and no text; quote it"), "a: {null: b}": (1, "'null' is a key and no text"),
    "true: a": (1, "'true' is a key"), "? [a, b]\n: c": (1, "'a list' is a key"),
    "a: !!int many": (1, "'many' is no int"), "a: &a [*a]": (1, "'a list' holds itself"),
    "a: !!python/object/apply:os.system [x]": (1, "not YAML: could not determine a constructor"),
    "a: b: c": (1, "not YAML: mapping values are not allowed here"),
    "a: *b": (1, "not YAML: found undefined alias"), "a: 1\n---\nb: 2": (2, "not YAML: but found another document"),
}  # fmt: skip


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_what_yaml_reads_in_two_ways_is_refused(text: str, tmp_path: Path) -> None:
    line, said = AMBIGUOUS[text]
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"config: {file}: line {line}: {said}")
    with pytest.raises(RequestError) as caught:
        parse_assignment(f"storage_options={text}")
    assert str(caught.value).startswith("--set: storage_options: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 5000, "not YAML: it is nested too deeply"),
        ("a: '\x00'", "not YAML: unacceptable character"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
         "has more than 100,000 values, by its aliases"),
        ("- a\n- b", "a configuration is a mapping of keys such as"), ("", "a configuration is a mapping of keys"),
        ("a: " + "b" * 5_000_000, "is longer than 4,194,304 characters"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"config: {file}: {problem}")


def test_a_secret_is_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("storage_options:\n  s3:\n    secret: 0123456701234567\n")
    with pytest.raises(RequestError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"config: {file}: line 3: a value is an octal number")
    with pytest.raises(RequestError) as caught:
        parse_assignment("storage_options.s3.secret=0123456701234567")
    assert "0123" not in str(caught.value)


def test_what_has_one_meaning_is_taken() -> None:
    text = """
    base: &base {a: 1, b: 0x1f, c: 1_000}
    more: {<<: *base, b: 2}
    quoted: ["on", 'y', "010", "30:00", "2024-01-01"]
    numbers: [1e-6, -1.5, .5, 0, 1., 1E3]
    date: 2024-01-01
    rest: [~, null, true, False, 127.0.0.1:6379, s3://b/k, =, "", !!str on]
    """
    assert read_yaml(text) == {
        "base": {"a": 1, "b": 31, "c": 1000}, "more": {"a": 1, "b": 2, "c": 1000},
        "quoted": ["on", "y", "010", "30:00", "2024-01-01"], "numbers": [1e-6, -1.5, 0.5, 0, 1.0, 1000.0],
        "date": "2024-01-01", "rest": [None, None, True, False, "127.0.0.1:6379", "s3://b/k", "=", "", "on"],
    }  # fmt: skip


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "link"])
def test_only_a_file_is_read_as_a_configuration(what: str, tmp_path: Path) -> None:
    place = tmp_path / "c.yaml"
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if what == "device" else tmp_path / "nowhere")
    with pytest.raises(RequestError) as caught:
        load_config(place)
    said = {"link": "no such configuration file", "folder": "cannot be read: ", "pipe": "is a pipe, not a file"}
    assert str(caught.value).startswith(f"config: {place}: {said.get(what, 'is a device, not a file')}")
