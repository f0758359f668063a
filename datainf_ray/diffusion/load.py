"""A pipeline with its LoRA: without weights, as the driver looks at it, and with them, as a worker computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.config import DiffusionConfig, ModelConfig
from datainf_ray.diffusion.adapters import LoraFile, add_layers, read_lora
from datainf_ray.diffusion.header import pictures_in, told_of_loss
from datainf_ray.diffusion.parts import Parts, PipelineConfig
from datainf_ray.diffusion.pipeline import pipeline_config
from datainf_ray.influence.block import Block
from datainf_ray.model.blocks import choose_blocks, kind_of, name_blocks
from datainf_ray.model.files import adapter_folder
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.model.quiet import quiet
from datainf_ray.model.weights import require_sound_base

_VARIANT = "fp16"  # some pipelines are saved with files of this kind alone
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def inspect_pipeline(
    model: ModelConfig, options: Options | None = None, asked: DiffusionConfig | None = None
) -> tuple[ModelFacts, PipelineConfig]:
    """What is known of base and LoRA without loading the base's weights. Raises `RequestError`.

    Notes say how the loss that the LoRA was trained with differs from that which is `asked` for.
    """
    told = pipeline_config(model, options)
    family = told.family
    for part in _needed(told):
        require_sound_base(model, options, part, (_stem(told, part), f"{_stem(told, part)}.{_VARIANT}"))
    lora = _lora(model, told, options)
    parts: dict[str, nn.Module] = {family.denoiser: told.on_meta(family.denoiser)}
    for _, encoder, _ in told.texts:
        if any(name.startswith(f"{encoder}.") for name in lora.tensors):
            parts[encoder] = told.on_meta(encoder)
    parameters = sum(p.numel() for p in parts[family.denoiser].parameters())
    whole = _with_layers(model, lora, told, parts)
    blocks = tuple(Block(n, kind_of(whole, p), tuple(p.shape)) for n, p in name_blocks(whole).items())
    widths = told.configs[family.denoiser].get("block_out_channels")
    hidden = max(widths) if widths else _width(told.configs[family.denoiser])
    rescaled = bool(told.configs["scheduler"].get("rescale_betas_zero_snr"))
    trained = told_of_loss(lora.header, lora.file.name, asked or DiffusionConfig(), rescaled)
    notes = (*filter(None, [lora.note]), *trained)
    known = {"trained": pictures_in(lora.header, lora.file.name)}
    return ModelFacts(blocks=blocks, base_parameters=parameters, task=known, hidden_size=hidden, notes=notes), told


def load_pipeline(model: ModelConfig, device: torch.device, options: Options | None = None) -> Parts:
    """The parts on `device`, in eval mode; the tensors that take a gradient are the blocks. Raises `RequestError`."""
    told = pipeline_config(model, options, weights=True)
    lora = _lora(model, told, options)
    dtype = getattr(torch, model.dtype) if model.dtype != "auto" else _own_dtype(told)
    if model.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32  # half precision on a CPU is slow and gains nothing
    parts = {name: _part(model, told, name, dtype) for name in _needed(told)}
    whole = _with_layers(model, lora, told, parts)
    for name, parameter in whole.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # as PEFT trains it, whatever the base computes in
    return whole.to(device).eval()


def _stem(told: PipelineConfig, part: str) -> str:
    """What the names of a part's weight files begin with."""
    return "model" if told.classes[part][0] == "transformers" else "diffusion_pytorch_model"


def _needed(told: PipelineConfig) -> list[str]:
    return [told.family.denoiser, "vae", *(encoder for _, encoder, _ in told.texts)]


def _lora(model: ModelConfig, told: PipelineConfig, options: Options | None) -> LoraFile:
    place = adapter_folder(model, options)
    if place is None:
        raise RequestError("model.adapter", "null", "text-to-image attributes a LoRA", "name its file or folder")
    return read_lora(model, place, told.family, told.configs[told.family.denoiser], _class_of(told))


def _class_of(told: PipelineConfig) -> Any:
    with quiet():
        import diffusers

        return getattr(diffusers, told.family.pipelines[0])


def _with_layers(model: ModelConfig, lora: LoraFile, told: PipelineConfig, parts: dict[str, nn.Module]) -> Parts:
    for part in parts.values():
        part.requires_grad_(False)
    add_layers(model, lora, told.family, {n: p for n, p in parts.items() if n != "vae"}, _class_of(told))
    whole = Parts(told.family, told, parts)
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_("lora_" in name)
    choose_blocks(whole, model)
    return whole


def _part(model: ModelConfig, told: PipelineConfig, name: str, dtype: torch.dtype) -> nn.Module:
    """One part with its weights: in `dtype`; but the VAE, which may overflow in float16, in float32."""
    import importlib

    library, kind = told.classes[name]
    asked = torch.float32 if name == "vae" else dtype
    files = [each.name for each in (Path(told.folder) / name).glob("*.safetensors")]
    alone = bool(files) and all(f".{_VARIANT}" in file for file in files)
    try:
        with quiet():
            found: nn.Module = getattr(importlib.import_module(library), kind).from_pretrained(
                told.folder,
                subfolder=name,
                use_safetensors=True,  # a pickle is not trusted
                variant=_VARIANT if alone else None,
                **{"torch_dtype" if library == "diffusers" else "dtype": asked},
            )
    except Exception as error:  # no common type: what files, torch, safetensors and the libraries raise
        problem = f"its {name} cannot be loaded: {one_line(error)[:300]}"
        raise RequestError("model.base", model.base, problem) from None
    return found


def _own_dtype(told: PipelineConfig) -> torch.dtype:
    """What the denoiser's file has most of; float32 where it cannot be told."""
    from safetensors import safe_open

    files = sorted((Path(told.folder) / told.family.denoiser).glob("*.safetensors"))
    if not files:
        return torch.float32
    with safe_open(files[0], "pt") as file:
        first = next(iter(file.keys()), None)
        return torch.float32 if first is None else _DTYPES.get(file.get_slice(first).get_dtype(), torch.float32)


def _width(config: Any) -> int:
    """The width of a transformer."""
    return int(config.get("num_attention_heads") or 1) * int(config.get("attention_head_dim") or 1)


class Tokenizers:
    """A pipeline's tokenizers, in the order of the family's texts; asked for anything else it is the first."""

    def __init__(self, each: tuple[Any, ...]) -> None:
        self.each = each

    def __getattr__(self, name: str) -> Any:
        if name == "each":  # before it is there, as while it is unpickled
            raise AttributeError(name)
        return getattr(self.each[0], name)


def load_tokenizers(model: ModelConfig, options: Options | None = None) -> Tokenizers:
    """The pipeline's tokenizers. Raises `RequestError`."""
    from transformers import AutoTokenizer

    told = pipeline_config(model, options)
    found = []
    for name, _, most in told.texts:
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(str(Path(told.folder) / name))
        except Exception as error:  # no common type: a missing file, a missing package, a class it does not know
            problem = f"its {name} cannot be loaded: {one_line(error)[:300]}"
            raise RequestError("model.base", model.base, problem) from None
        found.append(tokenizer)
        if most is not None:
            tokenizer.model_max_length = most
    return Tokenizers(tuple(found))
