"""Tiny random pipelines of all families, with LoRA files and pictures, made offline; and diffusers' training loss."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from diffusers.training_utils import _collate_lora_metadata, compute_snr
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn import functional as F

from datainf_ray.diffusion.noise import key_of, noise
from datainf_ray.model.quiet import quiet

FAMILIES = ("sd", "sdxl", "sd3", "flux")
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
TIMESTEPS = [25, 525, 925]
SIDE = 16  #: pixels
RANK, ALPHA = 2, 4


def clip(width: int, projection: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
        projection_dim=width, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def clip_tokenizer() -> Any:
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={n: k for k, n in enumerate(names)}, merges=[], model_max_length=77)


def t5() -> tuple[Any, Any]:
    letters = [(letter, -4.0) for letter in " abcdefghijklmnopqrstuvwxyz0123456789"]
    core = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config), tokenizer


def vae(channels: int, levels: int, **settings: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=[4] * levels, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, latent_channels=channels, norm_num_groups=2, **settings,
    )  # fmt: skip


def unet(**settings: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, down_block_types=("DownBlock2D", _CROSS[0]),
        up_block_types=(_CROSS[1], "UpBlock2D"), norm_num_groups=2, attention_head_dim=2, **settings,
    )  # fmt: skip


_CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_FLOW_VAE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}


def sd() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(4, 2), text_encoder=clip(16), tokenizer=clip_tokenizer(), unet=unet(cross_attention_dim=16),
        scheduler=diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4, 2), text_encoder=clip(8), text_encoder_2=clip(8, True), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        unet=unet(cross_attention_dim=16, addition_embed_type="text_time", addition_time_embed_dim=4,
                  projection_class_embeddings_input_dim=8 + 6 * 4, use_linear_projection=True),
    )  # fmt: skip


def sd3() -> Any:
    encoder, tokenizer = t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, 1, **_FLOW_VAE), text_encoder=clip(8, True), text_encoder_2=clip(8, True), text_encoder_3=encoder,
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), tokenizer_3=tokenizer,
    )  # fmt: skip


def flux() -> Any:
    encoder, tokenizer = t5()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(2, 1, **_FLOW_VAE), text_encoder=clip(8), text_encoder_2=encoder, tokenizer=clip_tokenizer(),
        tokenizer_2=tokenizer,
    )  # fmt: skip


MAKERS = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def part_of(family: str) -> str:
    return "unet" if family in ("sd", "sdxl") else "transformer"


def make(
    folder: Path, family: str, targets: list[str] | None = None, texts: bool = False, **scheduler: Any
) -> dict[str, Any]:
    """Save a random pipeline, and a random LoRA as diffusers' trainers save it; the `model` part of a configuration.

    With `texts` the first text encoder has a LoRA, too.
    """
    torch.manual_seed(0)
    with quiet():
        pipe = MAKERS[family]()
        pipe.save_pretrained(folder / "base")
        parts = {part_of(family): targets or ATTENTION} | ({"text_encoder": ["q_proj", "v_proj"]} if texts else {})
        for name, layers in parts.items():
            part = getattr(pipe, name)
            part.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers))
            for key, parameter in part.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(parameter, std=0.2)
        named = {f"{name}_lora_layers": get_peft_model_state_dict(getattr(pipe, name)) for name in parts}
        header = _collate_lora_metadata({name: getattr(pipe, name) for name in parts})
        type(pipe).save_lora_weights(folder / "lora", **named, **header)
        type(pipe).save_lora_weights(folder / "silent", **named)
    file = folder / "base" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
    return {"base": str(folder / "base"), "adapter": str(folder / "lora"), "task": "text-to-image"}


def as_kohya(folder: Path, alpha: float) -> Path:
    """The LoRA in `folder`/silent as kohya's trainer saves it."""
    from safetensors.torch import load_file

    state = {}
    for name, x in load_file(folder / "silent" / "pytorch_lora_weights.safetensors").items():
        layer, _, side = name.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{stem}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = x.contiguous()
        state[f"{stem}.alpha"] = torch.tensor(alpha)
    (folder / "kohya").mkdir()
    header = {"ss_network_dim": str(RANK), "ss_network_alpha": str(alpha), "ss_network_module": "networks.lora"}
    save_file(state, folder / "kohya" / "style.safetensors", header)
    return folder / "kohya" / "style.safetensors"


def picture(seed: int, size: tuple[int, int] = (20, 24), format: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write_rows(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Parquet as `datasets` writes pictures: {bytes, path}."""
    rows: list[dict[str, Any]] = [
        {"name": f"row-{k}", "prompt": f"a dog no {k} of {seed}", "image": picture(100 * seed + k, (18 + k % 3, 20))}
        for k in range(count)
    ]
    table = pa.table({
        "name": [row["name"] for row in rows], "prompt": [row["prompt"] for row in rows],
        "image": [{"bytes": row["image"], "path": f"{k}.png"} for k, row in enumerate(rows)],
    })  # fmt: skip
    pq.write_table(table, path)
    return rows


class Trainer:
    """diffusers' training loss of a pipeline with its LoRA, in float64: a row and a timestep at a time.

    What its scripts do is written out here: train_text_to_image_lora.py, its _sdxl, train_dreambooth_lora_sd3.py and
    _flux.py; but for the latents, which are the mode, and the noise, which is ours.
    """

    def __init__(self, model: dict[str, Any], family: str, seed: int = 0) -> None:
        self.family, self.seed = family, seed
        with quiet():
            self.pipe = diffusers.DiffusionPipeline.from_pretrained(model["base"], torch_dtype=torch.float64)
            self.pipe.load_lora_weights(model["adapter"], adapter_name="default")
        parts = {n: p for n, p in self.pipe.components.items() if isinstance(p, torch.nn.Module)}
        named = [(f"{n}.{key}", p) for n, part in parts.items() for key, p in part.double().eval().named_parameters()]
        self.named = {name.replace(".default", ""): p for name, p in named if "lora_" in name}
        for parameter in self.named.values():
            parameter.requires_grad_(True)

    def pixels(self, data: bytes) -> tuple[Tensor, list[int]]:
        """As torchvision's Resize and CenterCrop; and what SDXL is told of it."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        width, height = image.size
        w, h = (SIDE, int(SIDE * height / width)) if width <= height else (int(SIDE * width / height), SIDE)
        left, top = round((w - SIDE) / 2), round((h - SIDE) / 2)
        cut = image.resize((w, h), Image.Resampling.LANCZOS).crop((left, top, left + SIDE, top + SIDE))
        x = torch.from_numpy(np.array(cut)).permute(2, 0, 1).double() / 255
        return ((x - 0.5) / 0.5)[None], [height, width, top, left, SIDE, SIDE]

    def loss(
        self,
        row: dict[str, Any],
        t: int,
        name: str | None = None,
        shared: bool = False,
        gamma: float | None = None,
        offset: float | None = None,
    ) -> Tensor:
        pipe, prompt = self.pipe, row["prompt"]
        pixels, sizes = self.pixels(row["image"])
        vae = pipe.vae.config
        with torch.no_grad():
            x = (pipe.vae.encode(pixels).latent_dist.mode() - (vae.shift_factor or 0)) * vae.scaling_factor
        key = torch.tensor([(0, 0) if shared else key_of(name or row["name"])])
        drawn = noise(key, torch.tensor([t]), x.numel(), self.seed).view(x.shape).double()
        if offset:  # as its scripts do it: a number for each channel
            of_channels = noise(key, torch.tensor([t + 2**31]), x.shape[1], self.seed).double()
            drawn = drawn + offset * of_channels[:, :, None, None]
        if self.family in ("sd", "sdxl"):
            scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
            at = torch.tensor([t])
            noisy = scheduler.add_noise(x, drawn, at)
            encoded = pipe.encode_prompt(
                prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            beside = {}
            if self.family == "sdxl":
                time_ids = torch.tensor([sizes], dtype=torch.float64)
                beside = {"added_cond_kwargs": {"text_embeds": encoded[2], "time_ids": time_ids}}
            said = pipe.unet(noisy, at, encoded[0], return_dict=False, **beside)[0]
            kind = scheduler.config.prediction_type
            target = drawn if kind == "epsilon" else scheduler.get_velocity(x, drawn, at)
            if gamma is None:
                return F.mse_loss(said, target, reduction="mean")
            snr = compute_snr(scheduler, at)
            weights = torch.stack([snr, gamma * torch.ones_like(at)], dim=1).min(dim=1)[0]
            if kind == "epsilon":
                weights = weights / snr
            elif kind == "v_prediction":
                weights = weights / (snr + 1)
            loss = F.mse_loss(said, target, reduction="none")
            return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()
        sigma = t / pipe.scheduler.config.num_train_timesteps
        noisy, at = (1 - sigma) * x + sigma * drawn, torch.tensor([t])
        encoded = pipe.encode_prompt(prompt, prompt, **({"prompt_3": prompt} if self.family == "sd3" else {}))
        if self.family == "sd3":
            states, pooled = encoded[0], encoded[2]
            said = pipe.transformer(noisy, states, pooled, at, return_dict=False)[0]
        else:
            packed = pipe._pack_latents(noisy, 1, x.shape[1], SIDE, SIDE)
            places = pipe._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, "cpu", torch.float64)
            said = pipe.transformer(
                packed, encoded[0], encoded[1], at / 1000, places, encoded[2], torch.tensor([3.5]), return_dict=False
            )[0]
            said = pipe._unpack_latents(said, SIDE, SIDE, pipe.vae_scale_factor)
        return torch.mean((said - (drawn - x)) ** 2)

    def gradients(self, rows: list[dict[str, Any]], **how: Any) -> dict[str, Tensor]:
        """{parameter: rows × timesteps × size}."""
        found: dict[str, list[list[Tensor]]] = {name: [] for name in self.named}
        for row in rows:
            for name in self.named:
                found[name].append([])
            for t in TIMESTEPS:
                grads = torch.autograd.grad(self.loss(row, t, **how), list(self.named.values()))
                for name, g in zip(self.named, grads, strict=True):
                    found[name][-1].append(g.flatten())
        return {name: torch.stack([torch.stack(each) for each in of_rows]) for name, of_rows in found.items()}
