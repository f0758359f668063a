"""Pictures that the pipeline makes of prompts: as diffusers' own pipelines make them, and kept as the run's queries."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datainf_ray.config import GenerateConfig, ModelConfig
from datainf_ray.diffusion.generate import Maker, as_png, mark_of
from datainf_ray.diffusion.load import load_pipeline, load_tokenizers
from datainf_ray.diffusion.noise import key_of, noise
from datainf_ray.diffusion.pictures import MOST_PIXELS
from datainf_ray.model.quiet import quiet
from tests.diffusion import pipelines

SIDE, STEPS, SEED = 16, 4, 5


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def maker(model: dict[str, Any], **asked: Any) -> Maker:
    settings = ModelConfig(**model)
    parts = load_pipeline(settings, torch.device("cpu"))
    return Maker(parts, load_tokenizers(settings), GenerateConfig(steps=STEPS, seed=SEED, **asked), SIDE)


def start(family: str, name: str, seed: int = SEED) -> Tensor:
    """The noise of a row's picture, at a timestep that no training has."""
    channels, side = {"sd": (4, 8), "sdxl": (4, 8), "sd3": (4, 16), "flux": (2, 16)}[family]
    drawn = noise(torch.tensor([key_of(name)]), torch.tensor([2**32 - 1]), channels * side * side, seed)
    return drawn.view(1, channels, side, side)


def by_diffusers(model: dict[str, Any], family: str, prompt: str, latents: Tensor, lora: bool, **asked: Any) -> Any:
    """The whole of diffusers' own pipeline, to pixels."""
    with quiet():
        pipe = diffusers.DiffusionPipeline.from_pretrained(model["base"])
        pipe.set_progress_bar_config(disable=True)
        if lora:
            pipe.load_lora_weights(model["adapter"])
        if family == "flux":
            latents = pipe._pack_latents(latents, *latents.shape)
        size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS}
        return np.array(pipe(prompt, latents=latents, **size, **asked).images[0])


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_a_picture_is_that_of_diffusers_own_pipeline(family: str, guidance: float | None, tmp_path: Path) -> None:
    model = pipelines.make(tmp_path, family, texts=family == "sd")
    make = maker(model, guidance=guidance)
    data = make("a dog no 1", "row-1", "whose")
    asked = {} if guidance is None else {"guidance_scale": guidance}
    begin = start(family, "row-1")
    want = by_diffusers(model, family, "a dog no 1", begin, True, **asked)
    assert np.array_equal(pixels(data), want)
    assert not np.array_equal(want, by_diffusers(model, family, "a dog no 1", begin, False, **asked))  # the LoRA counts
    assert mark_of(data) == "whose"
    assert data == make("a dog no 1", "row-1", "whose")
    assert not np.array_equal(pixels(make("a cat", "row-1", "")), want)
    assert not np.array_equal(pixels(make("a dog no 1", "row-2", "")), want)


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_in_half_precision_it_is_nearly_the_same(family: str, tmp_path: Path) -> None:
    """The VAE stays in single precision, which diffusers' pipelines do not expect."""
    model = pipelines.make(tmp_path, family, texts=family == "sd")
    whole, half = (pixels(maker(model | {"dtype": d})("a dog", "a", "")).astype(int) for d in ("float32", "float16"))
    base = by_diffusers(model, family, "a dog", start(family, "a"), False).astype(int)
    assert np.abs(half - whole).mean() < np.abs(base - whole).mean() / 5


def test_what_a_scheduler_draws_follows_from_the_row(tmp_path: Path) -> None:
    model = pipelines.make(tmp_path, "sd")
    index = tmp_path / "base" / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", "EulerAncestralDiscreteScheduler"))
    make, again = maker(model), maker(model)
    first = [make("a dog", name, "") for name in ("a", "b")]
    assert first == [again("a dog", name, "") for name in ("b", "a")][::-1]


def test_numbers_that_are_not_finite_make_no_picture(tmp_path: Path) -> None:
    model = pipelines.make(tmp_path, "sd")
    settings = ModelConfig(**model)
    parts = load_pipeline(settings, torch.device("cpu"))
    torch.nn.init.constant_(parts.unet.conv_out.bias, float("inf"))
    make = Maker(parts, load_tokenizers(settings), GenerateConfig(steps=STEPS), SIDE)
    with pytest.raises(ValueError, match="not finite"):
        make("a dog", "a", "")


def test_whose_a_picture_is() -> None:
    good = as_png(Image.new("RGB", (4, 4)), "run 3")
    assert mark_of(good) == "run 3"
    assert mark_of(good[:-30]) is None  # cut off
    flipped = bytearray(good)
    flipped[good.index(b"IDAT") + 8] ^= 1
    assert mark_of(bytes(flipped)) is None
    assert mark_of(pipelines.picture(1)) is None
    assert mark_of(b"") is None
    info, file = PngInfo(), io.BytesIO()
    info.add_text("datainf", "run 3")
    Image.new("1", (MOST_PIXELS // 1000 + 1, 1000)).save(file, "PNG", pnginfo=info)
    assert mark_of(file.getvalue()) is None  # it would take more memory than there is to spare
