"""Stable Diffusion XL: two CLIPs' hidden states before the last, and what the picture was cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datainf_ray.diffusion.families.sd import positions
from datainf_ray.diffusion.parts import Family, Parts


def embed(parts: Parts, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    seen = [
        encoder(ids, output_hidden_states=True)
        for encoder, ids in zip((parts.text_encoder, parts.text_encoder_2), tokens, strict=True)
    ]
    return {"states": torch.cat([each.hidden_states[-2] for each in seen], -1), "pooled": seen[1][0]}


def predict(parts: Parts, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """`given["sizes"]` has the height and width that the picture had, the top and left of the cut, and its sides."""
    beside = {"text_embeds": given["pooled"], "time_ids": given["sizes"].to(noisy.dtype)}
    found: Tensor = parts.unet(noisy, timesteps, given["states"], added_cond_kwargs=beside, return_dict=False)[0]
    return found


STABLE_DIFFUSION_XL = Family(
    name="Stable Diffusion XL",
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    denoiser="unet",
    texts=(("tokenizer", "text_encoder", None), ("tokenizer_2", "text_encoder_2", None)),
    flow=False,
    embed=embed,
    predict=predict,
    positions=positions,
)
