"""LoRA files as people have them: which file it is, what it says of its alpha, and its layers in a pipeline's parts.

    a PEFT folder         adapter_config.json and adapter_model.safetensors, of the denoiser
    diffusers'            pytorch_lora_weights.safetensors, unet.…, transformer.…, text_encoder.…; its header says alpha
    kohya's               one file of any name, lora_unet_…, each layer with its .alpha

Names are made the parts' own by diffusers itself. What it would leave out with a warning is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.words import printable
from datainf_ray.config import ModelConfig
from datainf_ray.diffusion.parts import Family
from datainf_ray.model.blocks import ADAPTER_NAME, PREFIX
from datainf_ray.model.files import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from datainf_ray.model.quiet import quiet
from datainf_ray.model.weights import must_be_finite

_HEADER = "lora_adapter_metadata"  # where diffusers keeps the LoraConfig
_KOHYA = "ss_network_alpha"  # where kohya's trainer does, beside each layer's own
#: What stands in the names of tensors that are no plain LoRA's, and what those are.
_OTHERS = {
    "hada_": "LoHa of LyCORIS",
    "lokr_": "LoKr of LyCORIS",
    "lora_mid": "LoCon of LyCORIS with a Tucker core",
    "oft_": "OFT",
    "boft_": "BOFT",
    "glora": "GLoRA of LyCORIS",
    "ia3": "IA3",
    "dora_scale": "DoRA in kohya's form, of which diffusers leaves out the magnitudes",
    ".diff": "full differences of layers",
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, by the names that diffusers gives its tensors."""

    file: Path
    tensors: Mapping[str, Tensor]  #: `part.layer.lora_A.weight` and the like
    alphas: Mapping[str, float] | None  #: by layer, where the file has them
    config: Mapping[str, Any] | None  #: `part.key`: the LoraConfig of each part, where the file has it
    header: Mapping[str, str]  #: what else its header says
    alpha_told: bool  #: by the file, its header or adapter_config.json

    @property
    def note(self) -> str | None:
        """What is to be said where nobody tells the alpha."""
        if self.alpha_told:
            return None
        return (
            f"{self.file.name} does not say the LoRA's alpha, by which its scale is alpha / rank: it is taken to be "
            "the rank, as diffusers does; give model.lora_alpha where the training had another"
        )


def read_lora(model: ModelConfig, place: str, family: Family, config: Mapping[str, Any], kind: Any) -> LoraFile:
    """The LoRA at `place`, a folder or a file on this machine.

    `config` is the denoiser's, and `kind` the pipeline's class of diffusers, which knows the names of others' files.
    Raises `RequestError` where it is none, is of a kind whose layers would not be as trained, or has weights that are
    not finite or a scale that is none.
    """
    lora = _read(model, place, family, config, kind)
    for name, tensor in lora.tensors.items():
        must_be_finite(model, name, int(tensor.numel() - tensor.isfinite().sum()), tensor.numel())
    for name, alpha in _alphas(lora):
        if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha != 0):
            problem = f"{name} is {printable(str(alpha), 40)}, and a LoRA's scale is its alpha over its rank"
            raise RequestError("model.adapter", str(lora.file), problem, "save it with the alpha of its training")
    return lora


def _alphas(lora: LoraFile) -> Iterator[tuple[str, Any]]:
    """What a file says of alphas, by name: its layers' own, and those of the configuration in it."""
    yield from (lora.alphas or {}).items()
    for name, value in (lora.config or {}).items():
        if name.endswith("lora_alpha"):
            yield name, value
        elif name.endswith("alpha_pattern") and isinstance(value, dict):
            yield from value.items()


def _read(model: ModelConfig, place: str, family: Family, config: Mapping[str, Any], kind: Any) -> LoraFile:
    file = lora_file(model, place)
    names, header = _header(model, file)
    found = next((what for mark, what in _OTHERS.items() for name in names if mark in name), None)
    if found is not None:
        remedy = "text-to-image attributes LoRA of linear layers and convolutions"
        raise RequestError("model.adapter", str(file), f"is {found}", remedy)
    if file.name == ADAPTER_WEIGHTS:
        return _peft(model, file, family)
    told = any(name.endswith(".alpha") for name in names) or _HEADER in header or _KOHYA in header
    if model.lora_alpha is not None and told:
        raise RequestError(
            "model.lora_alpha", model.lora_alpha, f"has no effect: {file.name} says its own", "leave it out"
        )
    try:
        with quiet():
            asked: dict[str, Any] = {} if family.denoiser != "unet" else {"unet_config": _Attributes(config)}
            if family.name == "Flux":
                asked["return_alphas"] = True
            parts = kind.lora_state_dict(str(file), use_safetensors=True, return_lora_metadata=True, **asked)
    except Exception as error:  # what the conversion of one trainer's names into another's raises
        raise RequestError("model.adapter", str(file), f"cannot be read: {one_line(error)[:300]}") from None
    tensors, metadata = parts[0], parts[-1] or None
    alphas = {name: float(x) for name, x in (parts[1] or {}).items()} if len(parts) == 3 else None
    alpha = model.lora_alpha
    if not alphas and not metadata and _KOHYA in header:
        alpha = _number(model, file, header[_KOHYA])
    if alpha is not None:
        alphas = {f"{name.partition('.')[0]}.all.alpha": alpha for name in tensors}
    return LoraFile(file, tensors, alphas or None, metadata, header, told or model.lora_alpha is not None)


def _number(model: ModelConfig, file: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        problem = f"its header says that {_KOHYA} is {printable(text, 40)}"
        raise RequestError("model.adapter", str(file), problem) from None


def lora_file(model: ModelConfig, place: str) -> Path:
    """The file that holds the LoRA. Raises `RequestError` where there is none, or are several."""
    path = Path(place)
    if path.is_file():
        return path
    known = [name for name in ("pytorch_lora_weights.safetensors", ADAPTER_WEIGHTS) if (path / name).is_file()]
    found = known or sorted(each.name for each in path.glob("*.safetensors"))
    if not found:
        pickled = [each.name for each in path.glob("*") if each.suffix in (".bin", ".pt", ".ckpt")]
        problem = f"has {pickled[0]}, and a pickle runs what is in it" if pickled else "no .safetensors file there"
        raise RequestError("model.adapter", model.adapter, problem, "give a LoRA's .safetensors file, or its folder")
    if len(found) > 1:
        raise RequestError(
            "model.adapter", model.adapter, f"has {len(found)} .safetensors files: {', '.join(found[:6])}", "name one"
        )
    return path / found[0]


def add_layers(model: ModelConfig, lora: LoraFile, family: Family, parts: Mapping[str, nn.Module], kind: Any) -> None:
    """Put the LoRA's layers, with their values, into the `parts` of a pipeline: adapter "default".

    Raises `RequestError` where a tensor of the file has no place, or another shape there.
    """
    left = {name for name in lora.tensors if not name.endswith(".alpha")}
    for name, part in parts.items():
        own = {key for key in left if key.startswith(f"{name}.")}
        if not own:
            continue
        left -= own
        alphas = {k: v for k, v in lora.alphas.items() if k.startswith(f"{name}.")} if lora.alphas else None
        asked: dict[str, Any] = {"network_alphas": alphas, "adapter_name": ADAPTER_NAME, "metadata": lora.config}
        state = dict(lora.tensors)
        try:
            with quiet():
                if name == family.denoiser:
                    part.load_lora_adapter(state, prefix=name, **asked)  # type: ignore[operator]
                else:
                    kind.load_lora_into_text_encoder(state, text_encoder=part, prefix=name, **asked)
        except Exception as error:  # ValueError, KeyError and RuntimeError of peft and torch for a misfit
            problem = f"does not fit the {name} of {model.base}: {one_line(error)[:300]}"
            raise RequestError("model.adapter", model.adapter, problem) from None
        there = sum("lora_" in key for key in part.state_dict())
        if there != len(own):
            problem = f"has {len(own)} tensors for the {name} of {model.base}, and {there} of them have a place there"
            raise RequestError("model.adapter", model.adapter, problem, "give the base that it was trained on")
    if left:
        problem = f"has {min(left)}, and {len(left) - 1} more, of no part of {model.base} that can have a LoRA"
        raise RequestError("model.adapter", model.adapter, problem)


def _peft(model: ModelConfig, file: Path, family: Family) -> LoraFile:
    """A folder that PEFT saved: its tensors are the denoiser's, as adapter_config.json says."""
    from safetensors.torch import load_file

    where = file.parent / ADAPTER_SETTINGS
    if model.lora_alpha is not None:
        raise RequestError("model.lora_alpha", model.lora_alpha, f"has no effect: {where} says its own", "leave it out")
    try:
        told = json.loads(where.read_text(encoding="utf-8"))
        kind = told.pop("peft_type", "LORA")
        tensors = load_file(file)
    except FileNotFoundError:
        raise RequestError("model.adapter", model.adapter, f"no {ADAPTER_SETTINGS} there") from None
    except Exception as error:  # JSON and safetensors have their own classes
        raise RequestError("model.adapter", str(where), f"cannot be read: {one_line(error)[:200]}") from None
    if kind != "LORA":
        raise RequestError("model.adapter", str(where), f"peft_type is {kind}, and text-to-image attributes LORA")
    config = {f"{family.denoiser}.{key}": value for key, value in told.items()}
    named = {f"{family.denoiser}.{name.removeprefix(PREFIX)}": x for name, x in tensors.items()}
    return LoraFile(file, named, None, config, {}, True)


def _header(model: ModelConfig, file: Path) -> tuple[list[str], dict[str, str]]:
    """The names of a file's tensors, and what its header says beside them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys()), dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise RequestError("model.adapter", str(file), f"cannot be read: {one_line(error)[:200]}") from None


class _Attributes:
    """A configuration whose keys are attributes, as diffusers' own are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)
