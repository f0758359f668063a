"""Stable Diffusion 1.x and 2.x: a UNet that sees one CLIP's last hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from datainf_ray.diffusion.parts import Family, Parts


def embed(parts: Parts, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    return {"states": parts.text_encoder(tokens[0])[0]}


def predict(parts: Parts, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = parts.unet(noisy, timesteps, given["states"], return_dict=False)[0]
    return found


def positions(config: Mapping[str, Any], h: int, w: int) -> int:
    """An eighth of the latents: most of a UNet's parameters work at a half, a quarter or an eighth of their sides."""
    return max(h * w // 8, 1)


STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1.x and 2.x",
    pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    denoiser="unet",
    texts=(("tokenizer", "text_encoder", None),),
    flow=False,
    embed=embed,
    predict=predict,
    positions=positions,
)
