"""Stable Diffusion 3: a transformer that sees two CLIPs' states, and T5's where the pipeline has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from datainf_ray.diffusion.parts import Family, Parts

_T5 = 256  # tokens


def embed(parts: Parts, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    seen = [
        encoder(ids, output_hidden_states=True)
        for encoder, ids in zip((parts.text_encoder, parts.text_encoder_2), tokens, strict=False)
    ]
    clip = torch.cat([each.hidden_states[-2] for each in seen], -1)
    if len(tokens) > 2:
        t5 = parts.text_encoder_3(tokens[2])[0].to(clip)
    else:
        t5 = clip.new_zeros(len(clip), _T5, parts.denoiser.config.joint_attention_dim)
    states = torch.cat([pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], 1)
    return {"states": states, "pooled": torch.cat([each[0] for each in seen], -1)}


def predict(parts: Parts, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = parts.transformer(
        hidden_states=noisy,
        timestep=timesteps,
        encoder_hidden_states=given["states"],
        pooled_projections=given["pooled"],
        return_dict=False,
    )[0]
    return found


def positions(config: Mapping[str, Any], h: int, w: int) -> int:
    patch = int(config.get("patch_size") or 1)
    return (h // patch) * (w // patch) + 77 + _T5


STABLE_DIFFUSION_3 = Family(
    name="Stable Diffusion 3",
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
    denoiser="transformer",
    texts=(
        ("tokenizer", "text_encoder", None),
        ("tokenizer_2", "text_encoder_2", None),
        ("tokenizer_3", "text_encoder_3", _T5),
    ),
    flow=True,
    embed=embed,
    predict=predict,
    positions=positions,
)
