"""Pictures with prompts, and a text-to-image pipeline of diffusers' that a LoRA is trained for: the paper's own kind.

Rows are a Parquet file with columns for picture, prompt and class; or a folder with a sub-folder of pictures for every
style, each captioned by the .txt file of its name or else by the style. The base is any pipeline that `datainf run`
takes, or "small": one that is made here, in a minute or two, of pictures of the classes that the LoRA does not see. Its
VAE and its text encoder are random and frozen, its UNet is trained whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from datainf_ray.config import ModelConfig, load_config
from datainf_ray.diffusion import target
from datainf_ray.diffusion.load import load_pipeline
from datainf_ray.diffusion.parts import Parts
from datainf_ray.diffusion.pipeline import pipeline_config
from datainf_ray.model.blocks import ADAPTER_NAME
from datainf_ray.request.job import Job, prepare
from experiments.common.finetune import examples_of

SMALL = "small"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_AT_ONCE = 4  # timesteps of a batch in training: each row is seen at all of them
_EVALUATION = 2**31  # seed of the noise that losses are measured with
_PRETRAINED = {"steps": 600, "batch": 16, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Pictures:
    """What is fine-tuned, on what: see `digits.Digits`, which has the same functions."""

    values: Mapping[str, Any]
    folder: Path  #: a workspace

    @property
    def base(self) -> str:
        return str(self.folder / "base") if self.values["model"] == SMALL else str(self.values["model"])

    def rows(self) -> tuple[pa.Table, pa.Table]:
        """The rows to train on and the queries: `each` and `queries_each` pictures of every class, in random order."""
        asked = self.values
        table = _table(asked["data"], asked["pictures"])
        draw = np.random.default_rng(asked["seed"])
        names = table["class"].to_numpy(zero_copy_only=False)
        classes = sorted(set(names))
        chosen = sorted(draw.permutation(classes)[: asked["pictures"]["classes"] or len(classes)])
        train: list[int] = []
        queries: list[int] = []
        for one in chosen:
            own = draw.permutation(np.flatnonzero(names == one))
            queries += own[: asked["queries_each"]].tolist()
            train += own[asked["queries_each"] :][: asked["each"]].tolist()
        if asked["model"] == SMALL and not (self.folder / "base").is_dir():
            rest = np.flatnonzero(~np.isin(names, chosen))
            make_small(self.folder / "base", table.take(rest), asked["pictures"]["side"])
        return table.take(draw.permutation(train)), table.take(queries)

    def request(self, train: str, queries: str, adapter: str, setting: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration for `datainf run`: every row of `queries` is a query."""
        columns = {"columns": {"image": "image", "prompt": "prompt"}}
        return {
            "model": {"base": self.base, "adapter": adapter, "task": "text-to-image"},
            "train": {"path": train, **columns},
            "queries": {"path": queries, **columns},
            "diffusion": {**setting, "resolution": self.values["pictures"]["side"]},
            "output": str(self.folder / "run"),
        }

    def fine_tune(self, table: pa.Table, seed: int, adapters: Path, epochs: list[int]) -> list[Path]:
        """Train an adapter on the rows; the folders of those kept after `epochs`, in PEFT's form."""
        folders = [adapters / f"epoch-{epoch:02d}" for epoch in epochs]
        if all((one / "adapter_model.safetensors").is_file() for one in folders):
            return folders
        recipe = self.values["recipe"]
        begun = self.folder / f"begun-{seed}"
        _new_lora(self.base, recipe, seed, begun)
        job, parts = self._loaded(table, begun)
        rows = _rows(job, parts)
        trained = [p for p in parts.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=recipe["learning_rate"], weight_decay=0.0)
        draw, step = torch.Generator().manual_seed(seed), 0
        for epoch in range(1, max(epochs) + 1):
            for some in torch.randperm(table.num_rows, generator=draw).split(recipe["batch"]):
                step += 1
                at = torch.randperm(parts.told.steps, generator=draw)[:_AT_ONCE].tolist()
                own = {name: x[some.to(x.device)] for name, x in rows.items()}
                loss = target.losses(parts, own, at, "mean", seed * 2**20 + step).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch in epochs:
                _save(parts.denoiser, _lora(recipe), folders[epochs.index(epoch)], ADAPTER_NAME)
        return folders

    @torch.no_grad()
    def losses_of(self, adapter: Path, table: pa.Table, timesteps: int = 20) -> np.ndarray:
        """The rows' losses (n), a mean over evenly spaced timesteps; their noise is none that an attribution draws."""
        job, parts = self._loaded(table, adapter)
        rows, steps = _rows(job, parts), parts.told.steps
        at = [(2 * k + 1) * steps // (2 * timesteps) for k in range(timesteps)]
        each = [
            target.losses(parts, {name: x[[k]] for name, x in rows.items()}, at, "mean", _EVALUATION)
            for k in range(table.num_rows)
        ]
        return torch.cat(each).double().mean(1).cpu().numpy()

    def alike(self, adapter: Path, train: pa.Table, queries: pa.Table) -> dict[str, np.ndarray]:
        """n × m likenesses that know no LoRA: cosines of pixels, and of latents, less their means over the rows."""
        found: dict[str, list[np.ndarray]] = {"pixels": [], "latents": []}
        for table in (train, queries):
            job, parts = self._loaded(table, adapter)
            pixels = np.stack([e.values["pixels"] for e in examples_of(job, "train")])
            found["pixels"].append(pixels.reshape(len(pixels), -1).astype(float))
            found["latents"].append(_rows(job, parts)["latents"].flatten(1).double().cpu().numpy())
        return {name: cosines(*pair) for name, pair in found.items()}

    def _loaded(self, table: pa.Table, adapter: Path) -> tuple[Job, Parts]:
        """A job whose rows to train on are those of `table`, and the pipeline with this adapter."""
        file = str(self.folder / "some.parquet")
        pq.write_table(table, file)
        asked = self.request(file, file, str(adapter), {"timesteps": 1})
        job = prepare(load_config(asked), writable=False)
        return job, load_pipeline(job.config.model, _device())


def cosines(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """n × m cosines of rows and queries, both less the rows' mean."""
    mean = rows.mean(0)
    one, other = (x - mean for x in (rows, queries))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    return np.asarray(one @ other.T)


def _table(place: str, names: Mapping[str, Any]) -> pa.Table:
    """image, prompt and class of all pictures."""
    if place.endswith(".parquet"):
        with fsspec.open(place, "rb") as file:
            table = pq.read_table(file)
        return pa.table({role: table[names[role]] for role in ("image", "prompt", "class")})
    fs, root = fsspec.url_to_fs(place)
    files = [path for path in sorted(fs.find(root)) if path.lower().endswith(_PICTURES)]
    if not files:
        raise ValueError(f"there is no picture in {place}")
    rows = []
    for path in files:
        style, stem = path.split("/")[-2], path.rpartition(".")[0]
        prompt = fs.cat_file(f"{stem}.txt").decode() if fs.exists(f"{stem}.txt") else style
        rows.append({"image": fs.cat_file(path), "prompt": prompt.strip(), "class": style})
    return pa.Table.from_pylist(rows)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rows(job: Job, parts: Parts) -> dict[str, Tensor]:
    """What of the job's rows to train on does not depend on a timestep, n × … each."""
    examples = examples_of(job, "train")
    assert job.task.draws is not None
    batch = job.task.batch(examples, range(len(examples)), 0).to(parts.schedule.device)
    values = {name: x.to(_device()) for name, x in batch.values.items()}
    with torch.no_grad():
        return job.task.draws.of_rows(parts, values)


def _lora(recipe: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=list(recipe["targets"]))


def _new_lora(base: str, recipe: Mapping[str, Any], seed: int, folder: Path) -> None:
    """An adapter before any training."""
    import diffusers

    asked = ModelConfig(base=base, adapter=None, blocks=("*",), task="text-to-image")
    told = pipeline_config(asked, weights=True)

    denoiser = getattr(diffusers, told.classes[told.family.denoiser][1])
    model = denoiser.from_pretrained(told.folder, subfolder=told.family.denoiser)
    torch.manual_seed(seed)
    model.add_adapter(_lora(recipe), adapter_name=ADAPTER_NAME)
    _save(model, _lora(recipe), folder, ADAPTER_NAME)


def _save(model: Any, lora: Any, folder: Path, name: str) -> None:
    """The adapter as a folder of PEFT's."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, adapter_name=name)
    folder.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(folder))
    named = {f"base_model.model.{key}": x.detach().cpu().contiguous() for key, x in state.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def make_small(folder: Path, table: pa.Table, side: int) -> None:
    """A small Stable Diffusion whose UNet knows how pictures like those of `table` look; saved in `folder`."""
    import diffusers
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2,
        projection_dim=64, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=[16] * 3, down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, latent_channels=4, norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=side // 4, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer(vocab={x: k for k, x in enumerate(words)}, merges=[], model_max_length=77),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _pretrain(pipe, table, side)
    pipe.save_pretrained(folder)


def _pretrain(pipe: Any, table: pa.Table, side: int) -> None:
    """Scale the VAE's latents to unit variance, and train the UNet whole on them."""
    from datainf_ray.diffusion.pictures import read_picture

    pixels = np.stack([read_picture(x, side, "center").pixels for x in table["image"].to_pylist()])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    device = _device()
    pipe.to(device)
    with torch.no_grad():
        latents = pipe.vae.encode(x.to(device)).latent_dist.mode()
        scale = float(1 / latents.std())
        pipe.vae.register_to_config(scaling_factor=scale)
        latents = latents * scale
        prompts = pipe.tokenizer(
            table["prompt"].to_pylist(), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        states = pipe.text_encoder(prompts["input_ids"].to(device))[0]
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=_PRETRAINED["learning_rate"], weight_decay=0.0)
    for _ in range(int(_PRETRAINED["steps"])):
        some = torch.randint(0, len(latents), (int(_PRETRAINED["batch"]),), generator=draw)
        at = torch.randint(0, 1000, (len(some),), generator=draw)
        drawn = torch.randn(latents[some].shape, generator=draw).to(device)
        noisy = pipe.scheduler.add_noise(latents[some], drawn, at.to(device))
        loss = (pipe.unet(noisy, at.to(device), states[some]).sample - drawn).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
