"""The target function: what a denoiser's loss on a picture is at a timestep, one for all families.

x = s · (mode of the VAE − shift)                            latents
ε = noise by the row's id, the timestep and the seed
z = √ᾱ_t x + √(1−ᾱ_t) ε        or (1−σ) x + σ ε, σ = t / N    what the denoiser sees
y = ε, or v = √ᾱ_t ε − √(1−ᾱ_t) x, or x;   or ε − x            what it should say, by the scheduler's prediction_type
loss = mean (or sum) over the latents of (denoiser(z, t, prompt) − y)²

With `diffusion.noise_offset` o, ε is moved by o · η_c in channel c, η drawn likewise. With `diffusion.min_snr_gamma` γ
the loss is weighed, as trainers do it, by min(SNR, γ) / SNR, or min(SNR, γ) / (SNR + 1) where v is predicted, or by
min(SNR, γ) where x is; SNR = ᾱ_t / (1−ᾱ_t). With `diffusion.prior_loss_weight` W the loss of a row that is a picture of
the class weighs W, as in DreamBooth's loss of a pair, instance + W · class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datainf_ray.diffusion.noise import noise
from datainf_ray.diffusion.parts import Parts, PipelineConfig
from datainf_ray.model.objective import Reduction, Values

_TOKENS = "tokens_"  # and the number of the tokenizer
_OFFSET = 2**31  # beyond all timesteps of a training
_TARGETS = ("epsilon", "v_prediction", "sample")


def require_known_target(told: PipelineConfig) -> str | None:
    """Why the loss is not known by the scheduler's configuration; None where it is."""
    kind = told.configs["scheduler"].get("prediction_type", "epsilon")
    if told.family.flow or kind in _TARGETS:
        return None
    return f"its scheduler's prediction_type is {kind!r}, and those that are known are {', '.join(_TARGETS)}"


@torch.no_grad()
def frozen(parts: Parts, values: Values) -> dict[str, Tensor]:
    """What of b rows does not depend on the timestep: latents, prompt embeddings, noise keys; b × … each.

    Where a text encoder has a LoRA the tokens are left in the place of the embeddings.
    """
    shift, scale = parts.told.latent_scale
    vae: Any = parts.vae
    pixels = values["pixels"].permute(0, 3, 1, 2).to(next(vae.parameters()).dtype) / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode()
    latents = (latents - shift) * scale
    given = {name: x for name, x in values.items() if name.startswith(_TOKENS)}
    if not parts.trains_texts:
        given = _embedded(parts, given)
    kind = parts.dtype
    return {
        "latents": latents.to(torch.promote_types(kind, torch.float32)),
        "keys": values["keys"],
        "sizes": values["sizes"],
        **({"weights": values["weights"]} if "weights" in values else {}),
        **given,
    }


def _embedded(parts: Parts, values: Values) -> dict[str, Tensor]:
    """What the denoiser is conditioned on, of tokens."""
    tokens = [values[f"{_TOKENS}{k}"] for k in range(len(parts.told.texts))]
    return {name: x.to(parts.dtype) for name, x in parts.family.embed(parts, tokens).items()}


@dataclass(frozen=True)
class Options:
    """What a training may do to the loss, as `diffusion.min_snr_gamma` and `diffusion.noise_offset`; of no flow."""

    min_snr_gamma: float | None = None
    noise_offset: float | None = None


def losses(
    parts: Parts,
    rows: Values,
    timesteps: Sequence[int],
    reduction: Reduction,
    seed: int,
    options: Options = Options(),
) -> Tensor:
    """b × n losses of b rows, as `frozen` made them, at n `timesteps`; at least float32."""
    count = len(timesteps)
    rows = {name: x.repeat_interleave(count, 0) for name, x in rows.items()}
    x = rows["latents"]
    at = torch.tensor(timesteps, device=x.device).repeat(len(x) // count)
    drawn = noise(rows["keys"], at, x[0].numel(), seed).view(x.shape).to(x)
    if options.noise_offset is not None:
        drawn = drawn + options.noise_offset * _offset(rows["keys"], at, x, seed)
    told = parts.told.configs["scheduler"]
    if parts.family.flow:
        sigma = (at.double() / parts.told.steps).to(x)[:, None, None, None]
        noisy, target = (1 - sigma) * x + sigma * drawn, drawn - x
    else:
        kept = parts.schedule.to(x.device)[at][:, None, None, None]
        signal, rest = kept.sqrt().to(x), (1 - kept).sqrt().to(x)
        noisy = signal * x + rest * drawn
        kind = told.get("prediction_type", "epsilon")
        target = {"epsilon": drawn, "v_prediction": signal * drawn - rest * x, "sample": x}[kind]
    if parts.trains_texts:  # for every pair anew, so that a text encoder's layers see the pairs, too
        rows |= _embedded(parts, rows)
    said = parts.family.predict(parts, noisy.to(parts.dtype), at, rows)
    off = (said.to(target.dtype) - target).square().flatten(1)
    each = off.mean(1) if reduction == "mean" else off.sum(1)
    if options.min_snr_gamma is not None:
        each = each * _weights(parts, at, options.min_snr_gamma).to(each)
    if "weights" in rows:
        each = each * rows["weights"].to(each)
    return each.view(-1, count)


def _offset(keys: Tensor, at: Tensor, x: Tensor, seed: int) -> Tensor:
    """A normal number for each channel of b latents, as the noise is drawn, but at timesteps that no noise has."""
    return noise(keys, at + _OFFSET, x.shape[1], seed).to(x)[:, :, None, None]


def _weights(parts: Parts, at: Tensor, gamma: float) -> Tensor:
    """Min-SNR's weights of b timesteps, float64: SNR = ᾱ / (1 − ᾱ)."""
    kept = parts.schedule.to(at.device)[at]
    snr = kept / (1 - kept)
    kind = parts.told.configs["scheduler"].get("prediction_type", "epsilon")
    if kind == "epsilon":
        return (gamma / snr).clamp(max=1)  # which is 1 where there is no signal at all
    least = snr.clamp(max=gamma)
    return least / (snr + 1) if kind == "v_prediction" else least
