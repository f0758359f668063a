"""Pictures that a pipeline makes of prompts: diffusers' own pipeline over the parts that are attributed, LoRA and all.

A picture begins as noise by the id of its query's row and `diffusion.generate.seed`, from the generator that the loss'
noise has, at a timestep that no loss has. What a scheduler draws on the way comes from torch's generator on the CPU.
So a picture does not depend on which others are made, nor where, but for the rounding of a device's kernels.
"""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.config import DiffusionConfig, GenerateConfig, ModelConfig
from datainf_ray.diffusion.noise import key_of, noise
from datainf_ray.diffusion.parts import Parts, PipelineConfig
from datainf_ray.diffusion.pictures import refused
from datainf_ray.diffusion.pipeline import require_there
from datainf_ray.model.quiet import quiet

_START = 0xFFFFFFFF  # the noise that a picture begins as is at no timestep
_UNIT = 8  # pixels; what diffusers' pipelines take multiples of
_MARK = "datainf"  # what a PNG's text says, beside its pixels, of whose it is
#: What a pipeline has beside what is attributed: frozen away, as it changes no gradient.
_WITHOUT = ("safety_checker", "feature_extractor", "image_encoder")


def require_able(told: PipelineConfig, model: ModelConfig, asked: DiffusionConfig, side: int) -> None:
    """Raises `RequestError` where the pipeline cannot make pictures of `side` pixels as `asked.generate` says."""
    assert asked.generate is not None
    if side % _UNIT:
        near = max(side // _UNIT, 1) * _UNIT
        problem = f"pictures are made at multiples of {_UNIT}"
        raise RequestError("diffusion.resolution", side, problem, f"use {near}")
    library, name = told.classes["scheduler"]
    if library != "diffusers":
        problem = f"its scheduler is a {library}.{name}, and code of a pipeline's own is not run"
        raise RequestError("model.base", model.base, problem, "give queries with pictures")
    require_there(model, told.classes, ["scheduler"])
    if not told.family.flow:
        _require_steps(told, asked.generate.steps)
    distilled = told.family.name == "Flux" and not told.configs[told.family.denoiser].get("guidance_embeds")
    if distilled and asked.generate.guidance is not None:
        problem = f"has no effect: {model.base} takes no guidance"
        raise RequestError("diffusion.generate.guidance", asked.generate.guidance, problem, "use null")


def _require_steps(told: PipelineConfig, steps: int) -> None:
    """Raises `RequestError` where the base's scheduler cannot take so many; some need more than two or three."""
    try:
        _scheduler(told).set_timesteps(steps)
    except Exception as error:  # no common type: each scheduler has its own arithmetic
        problem = f"its {told.classes['scheduler'][1]} cannot take so many: {one_line(error)[:200]}"
        raise RequestError("diffusion.generate.steps", steps, problem, "try more") from None


def _scheduler(told: PipelineConfig) -> Any:
    """The base's own."""
    with quiet():
        import diffusers

        return getattr(diffusers, told.classes["scheduler"][1]).from_pretrained(told.folder, subfolder="scheduler")


class Maker:
    """Makes pictures of prompts, `side` pixels on each side, one at a time."""

    def __init__(self, parts: Parts, tokenizers: Any, asked: GenerateConfig, side: int) -> None:
        self._parts, self._asked, self._side = parts, asked, side
        self._pipe = _pipeline(parts, tokenizers)

    def __call__(self, prompt: str, name: str, mark: str) -> bytes:
        """The picture of a query's row whose id is `name`, as a PNG whose text has `mark`.

        Raises ValueError where its numbers are not finite, and what the pipeline raises.
        """
        with quiet(), torch.no_grad():
            image = self._image(prompt, name)
        return as_png(image, mark)

    def _image(self, prompt: str, name: str) -> Any:
        parts, pipe, asked = self._parts, self._pipe, self._asked
        key = key_of(name)
        guided = {} if asked.guidance is None else {"guidance_scale": asked.guidance}
        latents = pipe(
            prompt,
            height=self._side,
            width=self._side,
            num_inference_steps=asked.steps,
            latents=self._start(key),
            generator=torch.Generator("cpu").manual_seed((key[0] << 31 ^ key[1]) ^ asked.seed),
            output_type="latent",  # its own way to pixels has one dtype for all parts
            **guided,
        ).images
        if parts.family.packs:
            latents = pipe._unpack_latents(latents, self._side, self._side, pipe.vae_scale_factor)
        if not latents.isfinite().all():
            raise ValueError("the pipeline made numbers that are not finite")
        vae: Any = parts.vae
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        pixels = vae.decode((latents.to(vae.dtype) / scale) + shift, return_dict=False)[0]
        return pipe.image_processor.postprocess(pixels, output_type="pil")[0]

    def _start(self, key: tuple[int, int]) -> Tensor:
        """The noise that a picture begins as, as the pipeline takes it."""
        parts, packs = self._parts, self._parts.family.packs
        device = next(parts.parameters()).device
        channels = int(parts.denoiser.config.in_channels) // (4 if packs else 1)
        side = self._side // parts.told.vae_scale
        at = torch.tensor([_START], device=device)
        drawn = noise(torch.tensor([key], device=device), at, channels * side * side, self._asked.seed)
        x = drawn.view(1, channels, side, side).to(parts.dtype)
        return self._pipe._pack_latents(x, 1, channels, side, side) if packs else x


def _pipeline(parts: Parts, tokenizers: Any) -> Any:
    """diffusers' pipeline of the family over these parts, with the base's own scheduler."""
    told = parts.told
    index = json.loads((Path(told.folder) / "model_index.json").read_text(encoding="utf-8"))
    with quiet():
        import diffusers

        kind = getattr(diffusers, told.family.pipelines[0])
        takes = inspect.signature(kind.__init__).parameters
        given: dict[str, Any] = dict.fromkeys((*_WITHOUT, *(p for t in told.family.texts for p in t[:2])))
        given |= {"requires_safety_checker": False, "add_watermarker": False}
        given |= {name: value for name, value in index.items() if isinstance(value, bool) and name not in given}
        given |= dict(parts.named_children())
        given |= {name: each for (name, _, _), each in zip(told.texts, tokenizers.each, strict=True)}
        given["scheduler"] = _scheduler(told)
        pipe = kind(**{name: value for name, value in given.items() if name in takes})
        pipe.set_progress_bar_config(disable=True)
    return pipe


def as_png(image: Any, mark: str) -> bytes:
    """A picture of Pillow's as a PNG whose text has `mark`."""
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_text(_MARK, mark)
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def mark_of(data: bytes) -> str | None:
    """What `as_png` put into a PNG; None where it is none of ours, or damaged."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            mark = opened.info.get(_MARK)
            if not isinstance(mark, str) or refused(*opened.size, opened.mode):
                return None
            opened.load()
            return mark
    except Exception:  # OSError, SyntaxError, ValueError, struct.error and more: it is no picture, and made again
        return None
