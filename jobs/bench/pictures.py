"""The first sweep over pictures at several timesteps, over a LoRA training step of diffusers on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import Figure, Options, clock, interleaved, median, say, spread
from bench.models import curvature_inputs, first_sweep
from datainf_ray.config import DiffusionConfig
from datainf_ray.corpus.batches import Batch
from datainf_ray.corpus.tokens import Example
from datainf_ray.diffusion.families.sd import STABLE_DIFFUSION
from datainf_ray.diffusion.parts import Parts, PipelineConfig
from datainf_ray.model.draws import DrawnReplica
from datainf_ray.model.quiet import quiet
from datainf_ray.tasks import text_to_image
from datainf_ray.tasks.task import Task

RANK, TIMESTEPS = 4, [25, 225, 425, 525, 725, 925]
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_WORDS, _LENGTH = 1000, 77


@dataclass(frozen=True)
class Shape:
    """A UNet as Stable Diffusion's, but smaller, and how many pictures are in a batch."""

    channels: tuple[int, int]
    side: int  # of the latents
    rows: int
    context: int = 128


SHAPES = (Shape((64, 128), 16, 4), Shape((128, 256), 16, 2))
SMALL = (Shape((8, 8), 4, 2, 16),)


def pictures(options: Options) -> Iterator[Figure]:
    """Pairs of rows and timesteps per second in the first sweep over those of training, UNet by UNet."""
    torch.set_num_threads(options.threads or 1)
    for shape in SMALL if options.small else SHAPES:
        case = f"UNet {shape.channels}, latents {shape.side} × {shape.side}, r={RANK}"
        say(f"pictures: {case}")
        yield _one(options, case, shape)


def _one(options: Options, case: str, shape: Shape) -> Figure:
    asked = DiffusionConfig(timesteps=tuple(TIMESTEPS), resolution=2 * shape.side)
    drawn = text_to_image.draws(asked, 0)
    task = Task(**{**vars(text_to_image.TASK), "draws": drawn, "losses": drawn.mean})
    replica = DrawnReplica(adapted(shape), task, "mean", torch.device("cpu"))
    assert replica.path == "hooks", replica.reason
    replica.most_tokens = 10**9  # all pairs of a batch together, as in training
    batch = batch_of(task, shape)
    train = trainer(adapted(shape), replica, batch)
    inputs, pairs = curvature_inputs(replica, options.queries), shape.rows * len(TIMESTEPS)
    runs = interleaved(
        {
            "first sweep": clock(lambda: first_sweep(replica, [batch], shape.rows, inputs)),
            "training": clock(train),
        },
        options.repeats,
    )
    ours, floor = pairs / median(runs["first sweep"]), pairs / median(runs["training"])
    note = f"{ours:.3g} over {floor:.3g} pairs/s, {options.queries} queries"
    return Figure(
        "pictures",
        case,
        "first sweep / training step",
        ours / floor,
        "×",
        ("≥", 0.9),
        f"{note}; {spread(runs['training'], runs['first sweep'])}",
        runs,
    )


def adapted(shape: Shape) -> Parts:
    """A random pipeline's parts with a random LoRA on the UNet's attention: always the same."""
    import diffusers
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with quiet():
        unet: Any = diffusers.UNet2DConditionModel(
            sample_size=shape.side,
            block_out_channels=shape.channels,
            layers_per_block=2,
            cross_attention_dim=shape.context,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=8,
        )
        vae: Any = diffusers.AutoencoderKL(
            block_out_channels=[8, 8],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=2,
        )
        clip: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=_WORDS,
                hidden_size=shape.context,
                intermediate_size=32,
                num_attention_heads=2,
                num_hidden_layers=1,
            )
        )
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_ATTENTION))
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    configs = {"unet": dict(unet.config), "vae": dict(vae.config), "scheduler": scheduler}
    classes = {"text_encoder": ("transformers", "CLIPTextModel")}
    told = PipelineConfig("", STABLE_DIFFUSION, classes, configs)
    parts = Parts(STABLE_DIFFUSION, told, {"unet": unet, "vae": vae, "text_encoder": clip}).eval()
    for name, parameter in parts.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return parts


def batch_of(task: Task, shape: Shape) -> Batch:
    """A batch of random pictures and prompts."""
    generator = torch.Generator().manual_seed(0)
    side, examples = 2 * shape.side, []
    for k in range(shape.rows):
        ids = torch.randint(_WORDS, (_LENGTH,), generator=generator).tolist()
        pixels = torch.randint(256, (side, side, 3), generator=generator).to(torch.uint8).numpy()
        values = {"tokens": [ids], "pixels": pixels, "sizes": [side, side, 0, 0, side, side], "keys": (k, k)}
        values["content"] = (k,)
        examples.append(Example(k, str(k), "ok", "", values, (64,) * len(TIMESTEPS)))
    return task.batch(examples, range(len(examples)), 0)


def trainer(parts: Parts, replica: DrawnReplica, batch: Batch) -> Callable[[], None]:
    """A training step on all rows at all timesteps, with latents and embeddings at hand, as those of a sweep are."""
    import diffusers

    frozen = {name: x.repeat_interleave(len(TIMESTEPS), 0) for name, x in _frozen(replica, batch).items()}
    scheduler: Any = diffusers.DDPMScheduler(**parts.told.configs["scheduler"])
    optimizer = torch.optim.AdamW([p for p in parts.parameters() if p.requires_grad], lr=1e-6)
    x, at = frozen["latents"], torch.tensor(TIMESTEPS).repeat(len(batch.rows))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        noise = torch.randn_like(x)
        said = parts.unet(scheduler.add_noise(x, noise, at), at, frozen["states"], return_dict=False)[0]
        F.mse_loss(said.float(), noise.float(), reduction="mean").backward()
        optimizer.step()

    return step


def _frozen(replica: DrawnReplica, batch: Batch) -> dict[str, Tensor]:
    return replica.draws.of_rows(replica.model, batch.values)
