"""Flux: a transformer that sees T5's states and a CLIP's pooled one; latents go in as 2 × 2 patches, end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datainf_ray.diffusion.parts import Family, Parts

_T5 = 512  # tokens
_GUIDANCE = 3.5  # what the trainer of diffusers gives a model that is distilled from guidance
_STEPS = 1000  # the transformer multiplies its timestep by so many


def embed(parts: Parts, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    return {"pooled": parts.text_encoder(tokens[0]).pooler_output, "states": parts.text_encoder_2(tokens[1])[0]}


def predict(parts: Parts, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    b, c, h, w = noisy.shape
    packed = noisy.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
    places = torch.zeros(h // 2, w // 2, 3, device=noisy.device, dtype=noisy.dtype)
    places[..., 1] = torch.arange(h // 2, device=noisy.device)[:, None]
    places[..., 2] = torch.arange(w // 2, device=noisy.device)
    guided = parts.transformer.config.guidance_embeds
    found: Tensor = parts.transformer(
        hidden_states=packed,
        timestep=timesteps.to(noisy.dtype) / _STEPS,
        guidance=noisy.new_full((b,), _GUIDANCE) if guided else None,
        pooled_projections=given["pooled"],
        encoder_hidden_states=given["states"],
        txt_ids=places.new_zeros(given["states"].shape[1], 3),
        img_ids=places.flatten(0, 1),
        return_dict=False,
    )[0]
    return found.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def positions(config: Mapping[str, Any], h: int, w: int) -> int:
    return h * w // 4 + _T5


FLUX = Family(
    name="Flux",
    packs=True,
    pipelines=("FluxPipeline", "FluxImg2ImgPipeline"),
    denoiser="transformer",
    texts=(("tokenizer", "text_encoder", None), ("tokenizer_2", "text_encoder_2", _T5)),
    flow=True,
    embed=embed,
    predict=predict,
    positions=positions,
)
