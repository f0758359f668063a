"""A text-to-image pipeline with a LoRA of its denoiser: Stable Diffusion 1.x, 2.x, XL and 3, and Flux.

A row is a prompt and an image: its bytes, or as `datasets` writes it, or the name of a file beside the rows. Queries
may be prompts alone, where `diffusion.generate` is set: then the pipeline makes their images first. The image is cut
as `diffusion.resolution` and `diffusion.crop` say, its latents are the mode of the VAE, and its loss is taken at each
of `diffusion.timesteps`, with noise by the row's id (see `diffusion.target`). A row has as many tokens as the
denoiser's transformer sees at all timesteps; a UNet is taken for one over an eighth of its latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options
from datainf_ray.common.words import escaped
from datainf_ray.config import PICTURES, DiffusionConfig, ModelConfig, RunConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.columns import Combination
from datainf_ray.corpus.passages import Passage
from datainf_ray.corpus.targets import check_targets
from datainf_ray.corpus.thumbnails import thumbnail, told
from datainf_ray.corpus.tokens import Encode, Encoded, EncoderSpec, Fields, texts_of
from datainf_ray.tasks.task import Task

if TYPE_CHECKING:  # what loads torch is imported where it is needed: a task is looked at before
    import torch
    from torch import Tensor, nn

    from datainf_ray.model.inspect import ModelFacts
    from datainf_ray.model.objective import Draws, Reduction, Values

_YES, _NO = ("true", "1", "1.0"), ("false", "0", "0.0")
STEPS = 1000  #: timesteps of the training, of every family; that a base has them is looked at


def timesteps_of(asked: DiffusionConfig) -> list[int]:
    """The timesteps that are asked for, in their own order; of a number, those in the middle of equal parts.

    >>> timesteps_of(DiffusionConfig(timesteps=4))
    [125, 375, 625, 875]
    """
    count = asked.timesteps
    return [(2 * k + 1) * STEPS // (2 * count) for k in range(count)] if isinstance(count, int) else list(count)


def kinds_of(config: RunConfig, name: str) -> tuple[Combination, ...]:
    """Queries may be prompts alone: where they have no pictures, or where their columns are named and are prompts.

    Rows of train say whether they are a class' pictures, where these have a weight.
    """
    if name != "queries":
        return (PICTURE if config.diffusion.prior_loss_weight is None else OF_CLASS,)
    alone = config.diffusion.generate is not None and config.queries.columns and "image" not in config.queries.columns
    return (PROMPT,) if alone else (PICTURE, PROMPT)


def check(corpus: Corpus, facts: Mapping[str, Any], key: str, *, asked: DiffusionConfig) -> None:
    """Raises `RequestError` where queries have no pictures, and none are to be made; or have some, and they are."""
    if key != "queries":
        return
    if corpus.kind == PROMPT.kind and asked.generate is None:
        problem = f"the rows have prompts ({corpus.columns['prompt']}) and no pictures"
        remedy = "set diffusion.generate: {steps: 30}, and the pipeline makes them; or map them by {image: COLUMN}"
        raise RequestError("queries.columns", None, problem, remedy)
    if corpus.kind == PICTURE.kind and asked.generate is not None:
        problem = f"has no effect: the queries have pictures, {corpus.columns['image']}"
        prompt = corpus.columns["prompt"]
        remedy = f"leave it out, or take their prompts alone by queries.columns: {{prompt: {prompt}}}"
        raise RequestError("diffusion.generate", None, problem, remedy)


def tells(facts: Mapping[str, Any], corpus: Corpus) -> list[str]:
    """What is to be said where the training rows are not the pictures that the LoRA's file says it was trained on."""
    from datainf_ray.diffusion.header import told_of_pictures

    return [*told_of_pictures(facts["trained"], corpus.rows)]


def maker(model: Any, tokenizer: Any, facts: Mapping[str, Any], *, asked: DiffusionConfig) -> Callable[..., bytes]:
    """What makes the pictures of queries: a function of a row's fields and of the mark that its PNG is to have."""
    from datainf_ray.diffusion.generate import Maker

    assert asked.generate is not None
    make = Maker(model, tokenizer, asked.generate, facts["side"])
    return lambda fields, mark: make(fields["prompt"], fields["id"], mark)


def configured(task: Task, config: RunConfig) -> Task:
    """The task as the section `diffusion` has it."""
    asked, drawn = config.diffusion, draws(config.diffusion, config.seed)
    return replace(
        task,
        encoder=partial(encoder, asked=asked),
        inspect=partial(inspect, asked=asked),
        draws=drawn,
        losses=drawn.mean,
        check=partial(check, asked=asked),
        maker=partial(maker, asked=asked),
    )


def draws(asked: DiffusionConfig, seed: int) -> Draws:
    from datainf_ray.diffusion import target
    from datainf_ray.model.objective import Draws

    timesteps = timesteps_of(asked)

    options = target.Options(asked.min_snr_gamma, asked.noise_offset)

    def losses(model: Any, rows: Values, some: Sequence[int], reduction: Reduction) -> Tensor:
        return target.losses(model, rows, [timesteps[k] for k in some], reduction, seed, options)

    return Draws(tuple(timesteps), asked.combine == "paired", target.frozen, losses, "content")


def inspect(model: ModelConfig, options: Options | None = None, *, asked: DiffusionConfig) -> ModelFacts:
    """The facts of base and LoRA, with the blocks of all draws; for the encoder what size a picture must have."""
    from datainf_ray.diffusion.generate import require_able
    from datainf_ray.diffusion.load import inspect_pipeline
    from datainf_ray.diffusion.target import require_known_target

    if model.quantization is not None:
        problem = "a pipeline's denoiser is not quantized here"
        raise RequestError("model.quantization", model.quantization, problem, "use null, and model.dtype")
    facts, told = inspect_pipeline(model, options, asked)
    if why := require_known_target(told):
        raise RequestError("model.base", model.base, why)
    for key in ("min_snr_gamma", "noise_offset"):
        if told.family.flow and (value := getattr(asked, key)) is not None:
            problem = f"{told.family.name} is trained by flow matching, which has none"
            raise RequestError(f"diffusion.{key}", value, problem, "use null")
    last = max(timesteps_of(asked))
    if last >= told.steps + told.family.flow:
        problem = f"has {last}, and the training of {model.base} had timesteps from 0 to {told.steps - 1}"
        raise RequestError("diffusion.timesteps", asked.timesteps, problem)
    side, unit = asked.resolution or told.side, told.unit
    if side % unit:
        near = max(side // unit, 1) * unit
        raise RequestError("diffusion.resolution", side, f"{told.family.name} takes multiples of {unit}", f"use {near}")
    if asked.generate is not None:
        require_able(told, model, asked, side)
    latents = side // told.vae_scale
    positions = told.family.positions(told.configs[told.family.denoiser], latents, latents)
    return replace(
        facts,
        blocks=draws(asked, 0).blocks(facts.blocks),
        row_bytes=3 * side * side,
        task=facts.task | {"family": told.family.name, "side": side, "positions": positions},
    )


def load(model: ModelConfig, device: torch.device, options: Options | None = None) -> nn.Module:
    from datainf_ray.diffusion.load import load_pipeline

    return load_pipeline(model, device, options)


def tokenizer(model: ModelConfig, options: Options | None = None) -> Any:
    from datainf_ray.diffusion.load import load_tokenizers

    return load_tokenizers(model, options)


def encoder(spec: EncoderSpec, *, asked: DiffusionConfig) -> Encode:
    from datainf_ray.diffusion.noise import key_of
    from datainf_ray.diffusion.pictures import read_picture, stand_in

    check_targets(spec.kind, spec.targets, spec.key, takes={})
    if spec.max_length is not None:
        problem = "has no effect: a prompt has the tokens that the pipeline gives it"
        raise RequestError(f"{spec.key}.max_length", spec.max_length, problem, "use null")
    made = spec.kind == PROMPT.kind
    side, positions, count = spec.facts["side"], spec.facts["positions"], len(timesteps_of(asked))

    def encode(rows: Sequence[Fields]) -> list[Encoded | Exception]:
        prompts = [row["prompt"] for row in rows]
        padded = [
            each(prompts, padding="max_length", truncation=True, max_length=each.model_max_length)
            for each in spec.tokenizer.each
        ]
        whole = spec.tokenizer.each[-1](prompts, verbose=False)["input_ids"]
        return [one(row, [each["input_ids"][k] for each in padded], len(whole[k])) for k, row in enumerate(rows)]

    def one(fields: Fields, tokens: list[list[int]], whole: int) -> Encoded | Exception:
        try:
            alone = "image" not in fields  # only where it is looked at before its picture is made
            picture = stand_in(side) if alone else read_picture(fields["image"], side, asked.crop)
            prior = "prior" in fields and _is_prior(fields["prior"])
        except ValueError as error:
            return error
        values = {
            "tokens": tokens,
            "pixels": picture.pixels,
            "sizes": [*picture.original, *picture.corner, side, side],
            "keys": key_of(fields["id"]) if asked.noise == "row" else (0, 0),
        }
        if asked.prior_loss_weight is not None:
            values["weight"] = asked.prior_loss_weight if prior else 1.0
        first = spec.tokenizer.each[0]
        values["input_ids"] = first(fields["prompt"], truncation=True, max_length=first.model_max_length)["input_ids"]
        values["content"] = (_digest(values),)
        rule = "the noise of the picture that is made of it first" if made else "the picture's noise"
        return Encoded(
            values,
            (positions,) * count,
            tokens_cut=max(whole - len(tokens[-1]), 0),
            rule=f"{rule}, at every timestep",
            picture=None if alone else thumbnail(picture.pixels),
        )

    return encode


def says(spec: EncoderSpec, fields: Fields, values: Mapping[str, Any] | None) -> list[Passage]:
    """The prompt, and of the picture what it is called and how large it is."""
    passages = [Passage(role, text) for role, text in texts_of(fields).items() if role == "prompt"]
    image = fields.get("image")
    if isinstance(image, bytes):
        shape = None if values is None else values["sizes"][:2]
        shown = told(getattr(image, "name", None), len(image), shape)
        passages.append(Passage("image", shown, answer=True))
    return passages


def collate(values: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """`pixels` b × h × w × 3 uint8, `tokens_0` … b × s int64 of each tokenizer, `sizes` b × 6, `keys` b × 2 int64.

    `weights` b float64, where rows have them.
    """
    import numpy as np
    import torch

    found = {"pixels": torch.from_numpy(np.stack([value["pixels"] for value in values]))}
    for name in ("sizes", "keys"):
        found[name] = torch.tensor([list(value[name]) for value in values], dtype=torch.int64)
    if "weight" in values[0]:
        found["weights"] = torch.tensor([value["weight"] for value in values], dtype=torch.float64)
    for k in range(len(values[0]["tokens"])):
        found[f"tokens_{k}"] = torch.tensor([value["tokens"][k] for value in values], dtype=torch.int64)
    found["content"] = torch.tensor([value["content"][0] for value in values], dtype=torch.int64)
    return found


def _is_prior(value: Any) -> bool:
    """Whether a row is a picture of the class; CSV files write it as text. Raises ValueError where it says neither."""
    said = str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else ""
    if said in _NO or said in _YES:
        return said in _YES
    raise ValueError(f"prior is {escaped(str(value), 40)}, neither true nor false")


def _digest(values: Mapping[str, Any]) -> int:
    """63 bits of what a row's values are."""
    import hashlib

    total = hashlib.blake2b(values["pixels"].tobytes(), digest_size=8)
    total.update(repr([values[name] for name in ("tokens", "sizes", "keys", "weight") if name in values]).encode())
    return int.from_bytes(total.digest(), "little") >> 1


def model_class() -> Any:
    raise RequestError("model.task", PICTURES, "is loaded as a pipeline")


def losses(model: nn.Module, values: Values, reduction: Reduction) -> Tensor:
    return draws(DiffusionConfig(), 0).mean(model, values, reduction)


PICTURE = Combination("picture", ("prompt", "image"), types={"image": "picture"})
#: A row of train that says whether it is a picture of the class: of DreamBooth with prior preservation.
OF_CLASS = Combination("picture", ("prompt", "image", "prior"), types={"image": "picture"})
PROMPT = Combination("prompt", ("prompt",))  #: of queries alone, whose pictures the pipeline makes first

TASK = Task(
    name=PICTURES,
    kinds=(PICTURE,),
    kinds_of=kinds_of,
    check=partial(check, asked=DiffusionConfig()),
    tells=tells,
    makes=PROMPT.kind,
    maker=partial(maker, asked=DiffusionConfig()),
    model_class=model_class,
    encoder=partial(encoder, asked=DiffusionConfig()),
    collate=collate,
    losses=losses,
    says=says,
    inspect=partial(inspect, asked=DiffusionConfig()),
    load=load,
    tokenizer=tokenizer,
    takes_id=True,
    needs={"diffusers": "diffusers", "PIL": "pillow"},
    extra="diffusion",
    configured=configured,
)
