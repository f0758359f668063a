"""What a pipeline is made of: its family, what its configurations say, and the parts that a loss needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.model.quiet import quiet

_MOST_STEPS = 100_000  # of a training; tables of so many are made


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
    packs: bool = False  #: a token of the denoiser is 2 × 2 latents, with four times their channels


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
        return {n: p for n, p in self.named_children() if any("lora_" in key for key, _ in p.named_parameters())}

    @cached_property
    def trains_texts(self) -> bool:
        """Whether a text encoder has a LoRA."""
        return any(name != self.family.denoiser for name in self.adapted)

    @property
    def peft_config(self) -> Any:
        """As a model of PEFT's has it."""
        return next((part.peft_config for part in self.adapted.values() if hasattr(part, "peft_config")), {})

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in; its adapter may have more."""
        return next(p.dtype for name, p in self.denoiser.named_parameters() if "lora_" not in name)

    @cached_property
    def schedule(self) -> Tensor:
        """ᾱ_t of all timesteps of the training, float64; of flow matching nothing."""
        return self.told.alphas

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
        patch = 2 if self.family.packs else int(self.configs[self.family.denoiser].get("patch_size") or 1)
        return self.vae_scale * patch

    @property
    def side(self) -> int:
        """The pipeline's own resolution, in pixels."""
        size = self.configs[self.family.denoiser].get("sample_size") or 128  # Flux says none
        return int(size if isinstance(size, int) else min(size)) * self.vae_scale

    @property
    def steps(self) -> int:
        """The number of timesteps of the training."""
        found = int(self.configs["scheduler"].get("num_train_timesteps", 1000))
        if not 1 <= found <= _MOST_STEPS:
            raise ValueError(f"num_train_timesteps is {found}, and not from 1 to {_MOST_STEPS:,}")
        return found

    @property
    def latent_scale(self) -> tuple[float, float]:
        """The shift and the scale of the VAE's latents: s · (mode − shift)."""
        told = self.configs["vae"]
        return float(told.get("shift_factor") or 0.0), float(told.get("scaling_factor") or 1.0)

    @property
    def alphas(self) -> Tensor:
        """ᾱ_t of all timesteps of the training, float64; of flow matching nothing. Raises what its numbers do."""
        steps = self.steps
        if self.family.flow:
            return torch.empty(0)
        import diffusers

        config = {k: v for k, v in self.configs["scheduler"].items() if not k.startswith("_")}
        found: Tensor = diffusers.DDPMScheduler.from_config(config).alphas_cumprod
        if len(found) != steps:
            raise ValueError(f"it has {len(found)} timesteps, and not {steps}")
        return found.double()

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
