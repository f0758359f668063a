"""Bases whose configurations say what cannot be: one line each, before a worker starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import datainf_ray
from datainf_ray.common.errors import RequestError
from tests.diffusion.test_runs import prepared

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
#: The file, what is changed in it, and what is said.
ODD: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "a denoiser of a newer version": (
        INDEX, lambda d: d.update(unet=["diffusers", "UNet99"]), "its unet is UNet99, which diffusers "
    ),
    "a text encoder that is none": (
        INDEX, lambda d: d.update(text_encoder=["transformers", "Foo\x1b"]), "its text_encoder is Foo, which transf"
    ),
    "another VAE": (
        INDEX, lambda d: d.update(vae=["diffusers", "AutoencoderTiny"]), "its vae is AutoencoderTiny, and latents "
    ),
    "a VAE without levels": (
        "vae/config.json", lambda d: d.pop("block_out_channels"), "its vae cannot be understood: "
    ),
    "a VAE with a number of levels": (
        "vae/config.json", lambda d: d.update(block_out_channels=4), "its vae cannot be understood: "
    ),
    "a VAE whose scale is text": (
        "vae/config.json", lambda d: d.update(scaling_factor="x"), "its vae cannot be understood: "
    ),
    "a size in words": ("unet/config.json", lambda d: d.update(sample_size="big"), "its unet cannot be understood: "),
    "timesteps in words": (
        SCHEDULER, lambda d: d.update(num_train_timesteps="many"), "its scheduler cannot be understood: "
    ),
    "more timesteps than memory": (
        SCHEDULER, lambda d: d.update(num_train_timesteps=10**12), "its scheduler cannot be understood: "
    ),
    "an unknown schedule": (
        SCHEDULER, lambda d: d.update(beta_schedule="weird"), "its scheduler cannot be understood: weird is not imple"
    ),
    "a schedule of another length": (
        SCHEDULER, lambda d: d.update(trained_betas=[0.1] * 10), "its scheduler cannot be understood: it has 10 timest"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_a_base_that_says_what_cannot_be(case: str, tmp_path: Path) -> None:
    name, change, said = ODD[case]
    config = prepared(tmp_path, "sd")
    file = tmp_path / "base" / name
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))
    with pytest.raises(RequestError) as caught:
        datainf_ray.plan(config)
    line = str(caught.value)
    assert line.startswith(f"model.base: {tmp_path}/base: {said}"), line
    assert line.isprintable()


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_scheduler_that_no_picture_can_be_made_with(family: str, tmp_path: Path) -> None:
    """Gradients need no more of it than its numbers."""
    config = prepared(tmp_path, family)
    index = tmp_path / "base" / INDEX
    told = json.loads(index.read_text()) | {"scheduler": ["diffusers", "NewScheduler"]}
    index.write_text(json.dumps(told))
    datainf_ray.plan(config)
    pq.write_table(pq.read_table(tmp_path / "queries.parquet").drop_columns("image"), tmp_path / "queries.parquet")
    with pytest.raises(RequestError, match=r"^model.base: \S*: its scheduler is NewScheduler, which diffusers "):
        datainf_ray.plan(config, **{"diffusion.generate": {"steps": 4}})
