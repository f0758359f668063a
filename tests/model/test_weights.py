"""Weights that cannot be used: found on the driver where a header or a small read shows it, else told by the worker."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig, load_config
from datainf_ray.model import weights
from datainf_ray.model.inspect import inspect_model
from datainf_ray.model.load import load_replica
from datainf_ray.model.weights import read_header
from datainf_ray.request.job import prepare
from tests import tiny
from tests.runs_of import attribute

TASK = tiny.task("causal-lm")
BASE, ADAPTER = "base/model.safetensors", "adapter/adapter_model.safetensors"

Spoil = Callable[[Path], object]


def changed(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return spoil


def first_value(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(value)


def all_nan(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.fill_(math.nan)


def written(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def sharded(folder: Path) -> Path:
    """The base in several files, with an index."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    (folder / BASE).unlink()
    model.save_pretrained(folder / "base", max_shard_size="20KB")
    assert len(list((folder / "base").glob("*.safetensors"))) > 2
    return folder / "base"


def lost_shard(folder: Path) -> None:
    next(sharded(folder).glob("*00002*.safetensors")).unlink()


def truncated_shard(folder: Path) -> None:
    shard = next(sharded(folder).glob("*00002*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4])


def exchanged_shard(folder: Path) -> None:
    one, other = sorted(sharded(folder).glob("*.safetensors"))[:2]
    one.write_bytes(other.read_bytes())


def broken_index(folder: Path) -> None:
    (sharded(folder) / "model.safetensors.index.json").write_text("[]")


class Bomb:
    """Pickled, it writes a file where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("run"), "by a pickle")


def pickled_adapter(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / ADAPTER
        tensors = load_file(file)
        change(tensors)
        torch.save(tensors, file.with_name("adapter_model.bin"))
        file.unlink()

    return spoil


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / BASE), folder / "base/pytorch_model.bin")
    (folder / BASE).unlink()


WRONG: dict[str, tuple[Spoil, str]] = {
    "base truncated": (written(BASE, lambda b: b[:-4]), r"model.base: .*model.safetensors is truncated: it has [\d,]+"),
    "base of nothing": (written(BASE, lambda b: b""), "model.safetensors is no safetensors file, or a truncated one"),
    "base of text": (written(BASE, lambda b: b"version https://git-lfs.github.com"), "is no safetensors file, or a tr"),
    "base with more": (written(BASE, lambda b: b + b"more"), "is not what its header says: it has"),
    "broken header": (written(BASE, lambda b: b[:9] + b"x" + b[10:]), "safetensors file: its header is broken"),
    "lost shard": (lost_shard, r"there is no model-00002-of-\d+.safetensors, which model.safetensors.index.json names"),
    "truncated shard": (truncated_shard, r"model.base: .*model-00002-of-\d+.safetensors is truncated"),
    "exchanged shard": (exchanged_shard, r"index.json says that model-00001-of-\d+.safetensors has .*, and it has not"),
    "broken index": (broken_index, "model.safetensors.index.json is no index: it has no weight_map"),
    "pickled base": (pickled, r"its weights are pickled \(pytorch_model.bin\), and loading a pickle runs what is in"),
    "base all NaN": (changed(BASE, all_nan), r"in model.safetensors is all NaN, as far as it was looked at \("),
    "NaN in adapter": (changed(ADAPTER, first_value(math.nan)), r"model.adapter: .*lora_A.weight has 1 value of 128"),
    "inf in adapter": (changed(ADAPTER, first_value(math.inf)), "has 1 value of 128 that is not finite"),
    "adapter all NaN": (changed(ADAPTER, all_nan), "has 128 values of 128 that are not finite"),
    "NaN in a pickled adapter": (pickled_adapter(all_nan), "has 128 values of 128 that are not finite"),
    "a pickled adapter that runs code": (
        pickled_adapter(lambda tensors: tensors.update(x=Bomb())),
        "is a pickle of more than tensors, and none of it was run",
    ),
    "a pickled adapter of numbers": (
        pickled_adapter(lambda tensors: tensors.update(x=1)),
        "of something else than tensors",
    ),
    "adapter truncated": (written(ADAPTER, lambda b: b[:-4]), r"model.adapter: .*cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_cannot_be_used_are_one_line(
    case: str, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, said = WRONG[case]
    spoil(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said) as error:
        prepare(load_config(tiny.configuration(tmp_path, tiny_llama, tmp_path / "out")), writable=False)
    assert not Path("run").exists()  # what a pickle would write
    assert "\n" not in str(error.value)
    assert error.value.key == ("model.adapter" if "adapter" in case else "model.base")


@pytest.mark.parametrize("case", ["base truncated", "lost shard", "pickled base", "base all NaN"])
def test_a_base_in_a_store_is_known_by_its_headers(
    case: str, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAINF_CACHE", str(tmp_path / "cache"))
    spoil, said = WRONG[case]
    spoil(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "base"), "/weights/base", recursive=True)
    model = ModelConfig(**tiny_llama | {"base": "memory://weights/base"})
    try:
        if case == "base all NaN":  # its weights are not on the driver
            assert inspect_model(model, TASK).blocks
            return
        with pytest.raises(RequestError, match=said):
            inspect_model(model, TASK)
    finally:
        fs.rm("/weights", recursive=True)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_found_in_every_dtype(
    dtype: torch.dtype, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(value: float | None) -> Spoil:
        def changes(tensors: dict[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                tensors[name] = tensor.to(dtype)
            if value is not None:
                tensors[max(tensors)].view(-1)[0] = value

        return changed(ADAPTER, changes)

    change(None)(tmp_path)
    assert inspect_model(ModelConfig(**tiny_llama), TASK).blocks
    change(torch.finfo(dtype).max)(tmp_path)
    assert inspect_model(ModelConfig(**tiny_llama), TASK).blocks
    for size in (weights._ADAPTER_BYTES, 100):  # 100: a large adapter is looked at in pieces
        monkeypatch.setattr(weights, "_ADAPTER_BYTES", size)
        for value in (math.nan, math.inf, -math.inf):
            change(value)(tmp_path)
            with pytest.raises(RequestError, match="that is not finite"):
                inspect_model(ModelConfig(**tiny_llama), TASK)


def test_a_header_tells_where_the_tensors_are(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7.0), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    content = (tmp_path / "x.safetensors").read_bytes()
    header = read_header(lambda start, stop: content[start:stop], len(content))
    assert header.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert header[name].count == tensor.numel()
        assert content[header[name].first : header[name].last] == tensor.numpy().tobytes()
    for wrong in ('{"a": 1}', "[]", '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "[" * 10**5):
        text = len(wrong).to_bytes(8, "little") + wrong.encode()
        with pytest.raises(ValueError, match="its header is broken"):
            read_header(lambda start, stop, text=text: text[start:stop], len(text))


@pytest.mark.parametrize("case", ["base truncated", "pickled base", "lost shard", "broken header"])
def test_a_worker_says_so_too(case: str, tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    """Of a base that the driver has not seen."""
    WRONG[case][0](tmp_path)
    with pytest.raises(RequestError, match=r"^model.base: .*base: cannot be loaded: ") as error:
        load_replica(ModelConfig(**tiny_llama), TASK)
    assert "weights_only" not in str(error.value)


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", [BASE, ADAPTER])
def test_a_run_ends_in_one_line_where_only_a_worker_sees_it(
    name: str, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(name, all_nan)(tmp_path)
    for part in ("base", "adapter"):
        monkeypatch.setattr(f"datainf_ray.model.inspect.require_sound_{part}", lambda *values: None)
    with pytest.raises(RequestError, match=rf"^model.{name.partition('/')[0]}: .*: no row has a loss: model.* not fin"):
        attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    assert "no row has a loss" in json.loads((tmp_path / "run" / "run.json").read_text())["reason"]
