"""A text-to-image pipeline's parts: which family it is of, what its configurations say, and the parts themselves."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.model.files import local_folder
from datainf_ray.model.quiet import quiet

_SPARE = "text_encoder_3"  # which Stable Diffusion 3 does without
_SMALL = ["*.json", "*.txt", "*.model"]  # what a hub's pipeline is known by, without its weights


@dataclass(frozen=True)
class Family:
    """What pipelines of one family have in common. A new one is a file in `families`, and a line in its `__init__`.

    `embed(parts, tokens)` makes what the denoiser is conditioned on of the tokens of b prompts, one tensor (b × s) for
    each of `texts`: tensors by name, b × … each. `predict(parts, noisy, timesteps, given)` is what the denoiser makes
    of noisy latents (b × c × h × w) with these (`given`). `positions(config, h, w)` says for how many tokens of a
    transformer a pass over latents of h × w counts: time and memory follow from that.
    """

    name: str
    pipelines: tuple[str, ...]  #: the classes that a model_index.json names
    denoiser: str  #: the part that is trained: unet or transformer
    texts: tuple[tuple[str, str, int | None], ...]  #: tokenizer, encoder, and the most tokens; None: the tokenizer's
    flow: bool  #: flow matching: the target is ε − x
    embed: Callable[[Parts, Sequence[Tensor]], dict[str, Tensor]]
    predict: Callable[[Parts, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    positions: Callable[[Mapping[str, Any], int, int], int]


class Parts(nn.Module):
    """The parts of a pipeline that a loss needs: the denoiser first, then text encoders and VAE, which are frozen."""

    unet: Any  #: one of these two
    transformer: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    text_encoder_3: Any

    def __init__(self, family: Family, config: PipelineConfig, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.family, self.told = family, config
        for name, part in parts.items():
            self.add_module(name, part)
        self.config = None  # the parts have theirs

    @property
    def denoiser(self) -> Any:
        return getattr(self, self.family.denoiser)

    @property
    def adapted(self) -> dict[str, nn.Module]:
        """The parts with layers of an adapter."""
        return {name: part for name, part in self.named_children() if getattr(part, "peft_config", None)}

    @property
    def peft_config(self) -> Any:
        """As a model of PEFT's has it."""
        return next((part.peft_config for part in self.adapted.values()), {})

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in; its adapter may have more."""
        return next(p.dtype for name, p in self.denoiser.named_parameters() if "lora_" not in name)

    @cached_property
    def schedule(self) -> Tensor:
        """ᾱ_t of all timesteps of the training, float64; of flow matching nothing."""
        if self.family.flow:
            return torch.empty(0)
        import diffusers

        config = {k: v for k, v in self.told.configs["scheduler"].items() if not k.startswith("_")}
        found: Tensor = diffusers.DDPMScheduler.from_config(config).alphas_cumprod
        return found.double()

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the base alone computes."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [layer for layer in self.modules() if isinstance(layer, BaseTunerLayer)]
        trained = [p for p in self.parameters() if p.requires_grad]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)


@dataclass(frozen=True)
class PipelineConfig:
    """What a pipeline's folder says without its weights."""

    folder: str
    family: Family
    classes: Mapping[str, tuple[str, str]]  #: part: library and class
    configs: Mapping[str, Mapping[str, Any]]  #: part: its configuration

    @property
    def texts(self) -> tuple[tuple[str, str, int | None], ...]:
        """Those of the family's texts that the pipeline has: some are saved without T5."""
        return tuple(text for text in self.family.texts if text[1] in self.classes)

    @property
    def vae_scale(self) -> int:
        """Pixels of a latent's side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def unit(self) -> int:
        """Of how many pixels the sides of a picture must be multiples."""
        patch = 2 if self.family.name == "Flux" else int(self.configs[self.family.denoiser].get("patch_size") or 1)
        return self.vae_scale * patch

    @property
    def side(self) -> int:
        """The pipeline's own resolution, in pixels."""
        size = self.configs[self.family.denoiser].get("sample_size") or 128  # Flux says none
        return int(size if isinstance(size, int) else min(size)) * self.vae_scale

    @property
    def steps(self) -> int:
        """The number of timesteps of the training."""
        return int(self.configs["scheduler"].get("num_train_timesteps", 1000))

    def on_meta(self, part: str) -> nn.Module:
        """A part without its weights."""
        library, name = self.classes[part]
        kind = getattr(importlib.import_module(library), name)
        try:
            with quiet(), torch.device("meta"):
                made: nn.Module
                if library == "diffusers":
                    made = kind.from_config(dict(self.configs[part]))
                else:
                    made = kind(kind.config_class(**self.configs[part]))
        except Exception as error:  # no common type: a configuration may say anything
            raise RequestError("model.base", f"{self.folder}/{part}", one_line(error)[:300]) from None
        return made


def pipeline_config(model: ModelConfig, options: Options | None = None, weights: bool = False) -> PipelineConfig:
    """What the folder of `model.base` says; with `weights` these are fetched, too. Raises `RequestError`."""
    folder = _folder(model, options, weights)
    index = _json(model, Path(folder) / "model_index.json")
    name = str(index.get("_class_name"))
    family = _family(model, name)
    classes, configs = {}, {}
    for part, told in index.items():
        if isinstance(told, list) and len(told) == 2 and all(isinstance(each, str) for each in told):
            classes[part] = (told[0], told[1])
    texts = [text for text in family.texts if text[1] in classes or text[1] != _SPARE]
    needed = [family.denoiser, "vae", "scheduler", *(part for text in texts for part in text[:2])]
    for part in needed:
        if part not in classes:
            raise RequestError("model.base", model.base, f"its model_index.json has no {part}", "copy all of the model")
        if part != "scheduler" and classes[part][0] not in ("diffusers", "transformers"):
            problem = f"its {part} is a {'.'.join(classes[part])}, and code of a pipeline's own is not run"
            raise RequestError("model.base", model.base, problem)
        file = {"scheduler": "scheduler_config.json"}.get(part, "config.json")
        if not part.startswith("tokenizer"):
            configs[part] = _json(model, Path(folder) / part / file)
    return PipelineConfig(folder, family, classes, configs)


def _family(model: ModelConfig, name: str) -> Family:
    from datainf_ray.diffusion.families import FAMILIES

    for family in FAMILIES:
        if name in family.pipelines:
            return family
    known = "; ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)
    problem = f"is a {name}, of which text-to-image does not know the loss: it knows {known}"
    raise RequestError(
        "model.base", model.base, problem, "write a task of your own, model.task: package.module:TASK (README)"
    )


def _folder(model: ModelConfig, options: Options | None, weights: bool) -> str:
    folder = local_folder(model.base, "model.base", weights, options)
    if Path(folder).is_dir():
        return folder
    try:
        if not weights:
            from huggingface_hub import snapshot_download

            return snapshot_download(folder, allow_patterns=_SMALL)
        import diffusers

        with quiet():
            found: str = diffusers.DiffusionPipeline.download(folder, use_safetensors=True)
        return found
    except Exception as error:  # the hub's errors have no common type
        raise RequestError("model.base", model.base, f"cannot be fetched: {one_line(error)[:300]}") from None


def _json(model: ModelConfig, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        name = f"{file.parent.name}/{file.name}" if file.name != "model_index.json" else file.name
        problem = f"no {name} there, which a pipeline of diffusers has"
        raise RequestError("model.base", model.base, problem) from None
    except (ValueError, OSError, RecursionError) as error:
        raise RequestError("model.base", str(file), f"cannot be read: {one_line(error)[:200]}") from None
    if not isinstance(found, dict):
        raise RequestError("model.base", str(file), "is no JSON object")
    return found
