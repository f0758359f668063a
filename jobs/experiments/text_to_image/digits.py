"""Digits of 8 × 8 pixels, a UNet that draws them by their class, and the task that says what its loss on one is.

The UNet is conditioned on a class through its cross-attention, by an embedding of its own, and works on pixels: no
pipeline of diffusers', so this is a task of a user's own. A row has `pixels`, 64 numbers from 0 to 16, and a `label`.

The rows to train on are of several styles, which the base does not know: inverted, shifted, thick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from datainf_ray.config import DiffusionConfig, RunConfig
from datainf_ray.corpus.columns import Combination
from datainf_ray.corpus.tokens import Encoded
from datainf_ray.diffusion.noise import key_of, noise
from datainf_ray.influence.block import Block
from datainf_ray.model.blocks import ADAPTER_NAME, kind_of, name_blocks
from datainf_ray.model.inspect import ModelFacts
from datainf_ray.model.objective import Draws, Reduction, Values
from datainf_ray.tasks import Task, each
from datainf_ray.tasks.text_to_image import timesteps_of

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")  #: that the paper's LoRA is on
_SIDE = 8  # pixels
_EMBEDDINGS = "class_embeddings.safetensors"  # classes × tokens × width


def styled(pixels: np.ndarray, style: str) -> np.ndarray:
    """n × 8 × 8 pixels, 0 to 16, in a style."""
    if style == "inverted":
        return 16 - pixels
    if style == "shifted":
        return np.roll(pixels, 2, axis=2)
    if style == "thick":  # every pixel is as dark as the darkest of it and its neighbours above and to the left
        padded = np.pad(pixels, ((0, 0), (1, 0), (1, 0)))
        return np.max([padded[:, a : a + _SIDE, b : b + _SIDE] for a in (0, 1) for b in (0, 1)], axis=0)
    raise ValueError(f"there is no style {style!r}")


def images(table: pa.Table) -> Tensor:
    """n × 1 × 8 × 8, from −1 to 1, as the base was trained."""
    pixels = torch.tensor(np.array(table["pixels"].to_pylist()), dtype=torch.float32)
    return pixels.view(-1, 1, _SIDE, _SIDE) / 8 - 1


class Model(torch.nn.Module):
    """The UNet in PEFT's layers, with the embeddings of the classes; and the share of a picture left at a timestep."""

    embeddings: Tensor
    kept: Tensor

    def __init__(self, base: str, adapter: Any) -> None:
        """`adapter`: a folder, or the `LoraConfig` of a new one."""
        super().__init__()
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from peft import PeftModel, get_peft_model
        from safetensors.torch import load_file

        unet = UNet2DConditionModel.from_pretrained(base)
        if isinstance(adapter, str):
            self.unet: Any = PeftModel.from_pretrained(unet, adapter, adapter_name=ADAPTER_NAME, is_trainable=True)
        else:
            self.unet = get_peft_model(unet, adapter, adapter_name=ADAPTER_NAME)
        self.register_buffer("embeddings", load_file(str(Path(base) / _EMBEDDINGS))["class_embeddings"])
        schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.register_buffer("kept", schedule.alphas_cumprod)

    def errors(self, x: Tensor, labels: Tensor, timesteps: Tensor, drawn: Tensor) -> Tensor:
        """b losses: the mean square of what the UNet says of the noise of b pictures, less the noise."""
        share = self.kept[timesteps][:, None, None, None].to(x)
        noisy = share.sqrt() * x + (1 - share).sqrt() * drawn
        said = self.unet(noisy, timesteps, self.embeddings[labels].to(x)).sample
        return (said - drawn).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Digits:
    """What is fine-tuned, on what, for `program`; files go to `folder`."""

    values: Mapping[str, Any]  #: the configuration's, with a seed
    folder: Path

    def rows(self) -> tuple[pa.Table, pa.Table]:
        """The rows to train on and the queries, in random order; no digit is in both, or in two styles."""
        asked = self.values
        with fsspec.open(asked["data"], "rb") as file:
            table = pq.read_table(file)
        draw = np.random.default_rng(asked["seed"])
        pixels = np.array(table["pixels"].to_pylist()).reshape(-1, _SIDE, _SIDE)
        labels, order, begin = table["label"].to_numpy(), draw.permutation(len(pixels)), 0
        found = []
        for count in (asked["each"], asked["queries_each"]):
            parts = []
            for style in asked["styles"]:
                some = order[begin : begin + count]
                begin += count
                drawn = styled(pixels[some], style).reshape(count, -1)
                parts.append(pa.table({"pixels": drawn.tolist(), "label": labels[some], "class": [style] * count}))
            whole = pa.concat_tables(parts)
            found.append(whole.take(draw.permutation(whole.num_rows)))
        if begin > len(pixels):
            raise ValueError(f"{begin} digits are wanted, and there are {len(pixels)}")
        return found[0], found[1]

    def request(self, train: str, queries: str, adapter: str, setting: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration for `datainf run`: every row of `queries` is a query."""
        columns = {"columns": {"pixels": "pixels", "label": "label"}}
        base = self.values["model"]
        return {
            "model": {"base": base, "adapter": adapter, "task": f"{__name__}:TASK", "trust_remote_code": True},
            "train": {"path": train, **columns},
            "queries": {"path": queries, **columns},
            "diffusion": dict(setting),
            "output": str(self.folder / "run"),
        }

    def fine_tune(self, table: pa.Table, seed: int, adapters: Path, epochs: list[int]) -> list[Path]:
        """Train an adapter on the rows, with a timestep and noise drawn anew for each row and step; the folders of
        those kept after `epochs`. What is there from an earlier attempt is not trained again."""
        from peft import LoraConfig

        folders = [adapters / f"epoch-{epoch:02d}" for epoch in epochs]
        if all((one / "adapter_model.safetensors").is_file() for one in folders):
            return folders
        recipe = self.values["recipe"]
        torch.manual_seed(seed)
        lora = LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=list(LAYERS))
        model = Model(self.values["model"], lora)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=recipe["learning_rate"], weight_decay=0.0)
        x, labels = images(table), torch.tensor(table["label"].to_numpy())
        draw = torch.Generator().manual_seed(seed)
        for epoch in range(1, max(epochs) + 1):
            for some in torch.randperm(len(x), generator=draw).split(recipe["batch"]):
                timesteps = torch.randint(0, len(model.kept), (len(some),), generator=draw)
                drawn = torch.randn(x[some].shape, generator=draw)
                loss = model.errors(x[some], labels[some], timesteps, drawn).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch in epochs:
                model.unet.save_pretrained(folders[epochs.index(epoch)])
        return folders

    @torch.no_grad()
    def losses_of(self, adapter: Path, table: pa.Table, timesteps: int = 20) -> np.ndarray:
        """The rows' losses (n), a mean over evenly spaced timesteps; their noise is none that an attribution draws."""
        model, x = Model(self.values["model"], str(adapter)).eval(), images(table)
        labels, draw = torch.tensor(table["label"].to_numpy()), torch.Generator().manual_seed(2**31)
        found = torch.zeros(len(x), dtype=torch.float64)
        for k in range(timesteps):
            at = torch.full((len(x),), (2 * k + 1) * len(model.kept) // (2 * timesteps))
            found += model.errors(x, labels, at, torch.randn(x.shape, generator=draw)).double() / timesteps
        return found.numpy()

    def alike(self, adapter: Path, train: pa.Table, queries: pa.Table) -> dict[str, np.ndarray]:
        """n × m likenesses that know no LoRA: cosines of pixels, from −1 to 1 each."""
        x, y = (images(table).flatten(1).double().numpy() for table in (train, queries))
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        return {"pixels": np.asarray(x @ y.T)}


def _draws(asked: DiffusionConfig, seed: int) -> Draws:
    timesteps = timesteps_of(asked)

    def losses(model: Model, known: Values, some: Sequence[int], reduction: Reduction) -> Tensor:
        count = len(some)
        x, labels, keys = (known[name].repeat_interleave(count, 0) for name in ("x", "labels", "keys"))
        at = torch.tensor([timesteps[k] for k in some], device=x.device).repeat(len(known["x"]))
        drawn = noise(keys, at, x[0].numel(), seed).view(x.shape).to(x)
        found = model.errors(x, labels, at, drawn)
        return (found if reduction == "mean" else found * x[0].numel()).view(-1, count)

    return Draws(tuple(timesteps), asked.combine == "paired", _frozen, losses, "content")


def _frozen(model: Model, values: Values) -> dict[str, Tensor]:
    """What of a row does not depend on the draw."""
    x = values["pixels"].view(-1, 1, _SIDE, _SIDE).to(next(model.parameters()).dtype) / 8 - 1
    return {"x": x, "labels": values["labels"], "keys": values["keys"]}


def _encoder(asked: DiffusionConfig) -> Any:
    count = len(timesteps_of(asked))

    def one(row: Mapping[str, Any]) -> Encoded:
        keys = key_of(row["id"]) if asked.noise == "row" else (0, 0)
        values = {"pixels": list(row["pixels"]), "labels": int(row["label"]), "keys": keys}
        digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
        values["content"] = int.from_bytes(digest, "little") >> 1
        return Encoded(values, (_SIDE,) * count)

    return lambda spec: each(one)


def _collate(values: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    return {name: torch.tensor([value[name] for value in values]) for name in values[0]}


def _inspect(asked: DiffusionConfig) -> Any:
    def inspect(model: Any, options: Any = None) -> ModelFacts:
        found = Model(model.base, model.adapter)
        blocks = [Block(name, kind_of(found, p), tuple(p.shape)) for name, p in name_blocks(found).items()]
        size = sum(p.numel() for p in found.unet.parameters())
        return ModelFacts(blocks=_draws(asked, 0).blocks(blocks), base_parameters=size, hidden_size=64)

    return inspect


def _configured(task: Task, config: RunConfig) -> Task:
    drawn = _draws(config.diffusion, config.seed)
    return replace(
        task,
        encoder=_encoder(config.diffusion),
        inspect=_inspect(config.diffusion),
        draws=drawn,
        losses=drawn.mean,
    )


TASK = Task(
    name="digits",
    kinds=(Combination("digit", ("pixels", "label"), types={"pixels": "list"}),),
    model_class=lambda: None,  # `load` makes the model
    encoder=_encoder(DiffusionConfig()),
    collate=_collate,
    losses=_draws(DiffusionConfig(), 0).mean,
    inspect=_inspect(DiffusionConfig()),
    load=lambda model, device, options: Model(model.base, model.adapter).to(device).eval(),
    tokenizer=lambda model, options: SimpleNamespace(),  # there is none, and none is needed
    takes_id=True,
    configured=_configured,
)
