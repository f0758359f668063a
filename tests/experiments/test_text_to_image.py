"""The text-to-image experiment: its task against a loop over single pictures, and the program on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiments.common.attribution import Attribution
from experiments.text_to_image import digits
from experiments.text_to_image.program import datamodeling, half_of
from PIL import Image
from safetensors.torch import save_file

from datainf_ray.diffusion.noise import key_of, noise
from tests import reference
from tests.diffusion import pipelines
from tests.experiments.running import run_experiment

CONFIGS = Path(__file__).parents[2] / "jobs/experiments/text_to_image"
RECIPE = {"rank": 2, "alpha": 4, "learning_rate": 1e-2, "batch": 4, "epochs": [1, 2]}


def base_of(folder: Path) -> str:
    """A random UNet of digits with its embeddings and its schedule, and some digits."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, in_channels=1, out_channels=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2, attention_head_dim=2, cross_attention_dim=6,
    )  # fmt: skip
    unet.save_pretrained(folder / "base")
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "base/scheduler")
    save_file({"class_embeddings": torch.randn(11, 4, 6)}, folder / "base/class_embeddings.safetensors")
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 17, (90, 64))
    pq.write_table(pa.table({"pixels": pixels.tolist(), "label": draw.integers(0, 10, 90)}), folder / "digits.parquet")
    return str(folder / "base")


def small(folder: Path) -> dict[str, Any]:
    few = {"styles": ["inverted", "shifted", "thick"], "each": 6, "queries_each": 2, "recipe": RECIPE}
    return {"model": base_of(folder), "data": str(folder / "digits.parquet"), **few}


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"combine": "paired", "noise": "row"}, {"combine": "mean", "noise": "shared"}])
def test_digits_have_the_gradients_of_a_plain_loop(tmp_path: Path, setting: dict[str, str]) -> None:
    """One picture and one draw at a time, by autograd, on DDPM's own noising."""
    subject = digits.Digits({**small(tmp_path), "seed": 0}, tmp_path)
    train, queries = subject.rows()
    for name, table in (("train", train), ("queries", queries)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (adapter,) = subject.fine_tune(train, 0, tmp_path / "adapters", [1])
    files = str(tmp_path / "train.parquet"), str(tmp_path / "queries.parquet")
    found = Attribution(subject.request(*files, str(adapter), {**setting, "timesteps": [100, 700]})).train
    model = digits.Model(subject.values["model"], str(adapter)).eval().double()
    scheduler = diffusers.DDPMScheduler.from_pretrained(subject.values["model"], subfolder="scheduler")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for k, row in enumerate(train.to_pylist()):
        x = torch.tensor(row["pixels"]).double().view(1, 1, 8, 8) / 8 - 1
        key = key_of(f"train.parquet#{k}") if setting["noise"] == "row" else (0, 0)
        each, losses = [], []
        for at in (100, 700):
            drawn = noise(torch.tensor([key]), torch.tensor([at]), 64, 0).double().view_as(x)
            noisy = scheduler.add_noise(x, drawn, torch.tensor([at]))
            said = model.unet(noisy, at, model.embeddings[[row["label"]]].double()).sample
            loss = torch.nn.functional.mse_loss(said, drawn)
            each.append(torch.autograd.grad(loss, list(trained.values())))
            losses.append(loss.item())
        if setting["combine"] == "paired":
            expected = [g.flatten() for gradients in each for g in gradients]
        else:
            expected = [torch.stack(pair).mean(0).flatten() for pair in zip(*each, strict=True)]
        got = [g[k].double() for g in found.gradients.values()]
        assert reference.worst(torch.cat(got), torch.cat(expected)) < 1e-5
        assert found.losses[k] == pytest.approx(np.mean(losses), rel=1e-5)


def test_styles_are_what_they_are_called() -> None:
    pixels = np.zeros((1, 8, 8), dtype=int)
    pixels[0, 3, 4] = 9
    assert digits.styled(pixels, "inverted")[0, 3, 4] == 7
    assert digits.styled(pixels, "inverted").sum() == 63 * 16 + 7
    assert np.argwhere(digits.styled(pixels, "shifted")).tolist() == [[0, 3, 6]]
    assert np.argwhere(digits.styled(pixels, "thick")).tolist() == [[0, 3, 4], [0, 3, 5], [0, 4, 4], [0, 4, 5]]


def test_scores_that_foresee_the_halves_have_a_score_of_one() -> None:
    rows, halves = 10, 12
    truth = np.random.default_rng(0).standard_normal(rows)
    after = [{"half": k, "losses": [float(truth[half_of(rows, k)].sum())]} for k in range(halves)]
    plain = {"query": 0, "class": "a", "combine": "mean", "noise": "row", "timesteps": 3, "last": True, "seed": 0}
    scores = [
        {**plain, "method": "right", "influence": truth.tolist()},
        {**plain, "method": "wrong", "influence": (-truth).tolist()},
        {**plain, "method": "early", "influence": truth.tolist(), "last": False},
    ]
    found = datamodeling(pa.Table.from_pylist(scores), pa.Table.from_pylist(after)).to_pylist()
    assert {r["method"]: round(r["score"], 9) for r in found} == {"right": 1.0, "wrong": -1.0}
    assert all(len(half_of(rows, k)) == 5 for k in range(halves))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_digits_in_styles(tmp_path: Path) -> None:
    """Every method has every query in every setting, no two settings are the same, and all is kept."""
    found = run_experiment("text-to-image", tmp_path / "out", **small(tmp_path), seeds=1, half=3, timesteps=[3])
    results = found["results"].to_pylist()
    assert len(results) == 2 * 6 * (4 * 4 + 3)
    assert all(0 <= r["auc"] <= 1 and 0 <= r["recall"] <= 1 for r in results)
    settings = [(r["epoch"], r["combine"], r["noise"], r["timesteps"], r["method"]) for r in results]
    orders = {key: [r["auc"] for r, one in zip(results, settings, strict=True) if one == key] for key in settings}
    assert {len(each) for each in orders.values()} == {6}
    by_cosine = [tuple(each) for key, each in orders.items() if key[-1] == "cosine"]
    assert len({*by_cosine}) == len(by_cosine) == 2 * 2 * 2
    assert len(found["datamodeling"]) == 6 * (4 * 4 + 3)
    assert "| 2 | paired | shared | 3 |" in (tmp_path / "out/table.md").read_text()
    assert "| paired | shared | 3 |" in (tmp_path / "out/halves.md").read_text()
    assert len(list((tmp_path / "out/adapters").rglob("*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_folder_of_styles(tmp_path: Path) -> None:
    """As the paper's job has it: a pipeline of diffusers', and a folder of pictures for every style."""
    draw = np.random.default_rng(0)
    for style in ("dark", "light"):
        (tmp_path / "styles" / style).mkdir(parents=True)
        for k in range(4):
            pixels = draw.integers(0, 60, (16, 16, 3), dtype=np.uint8) + (0 if style == "dark" else 190)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "styles" / style / f"{k}.png")
    (tmp_path / "styles/dark/0.txt").write_text("a photo at night\n")
    base = pipelines.make(tmp_path, "sd")["base"]
    recipe = {**RECIPE, "targets": pipelines.ATTENTION}
    pictures = {"classes": None, "side": 16}
    few = {"each": 3, "queries_each": 1, "recipe": recipe, "pictures": pictures, "timesteps": [2], "seeds": 1}
    found = run_experiment(
        "text-to-image", tmp_path / "out", str(CONFIGS / "pictures.yaml"),
        model=base, data=str(tmp_path / "styles"), half=2, **few,
    )["results"].to_pylist()  # fmt: skip
    assert len(found) == 2 * 2 * (4 * 4 + 4)
    assert {r["class"] for r in found} == {"dark", "light"}
    assert np.mean([r["auc"] for r in found if r["method"] == "pixels"]) > 0.9
    assert len({r["query_loss"] for r in found}) == 2  # one an epoch: the adapters differ
