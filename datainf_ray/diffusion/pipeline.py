"""Which family a text-to-image pipeline is of, and what its folder says: by its configurations, without weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.common.words import printable
from datainf_ray.config import ModelConfig
from datainf_ray.diffusion.families import FAMILIES
from datainf_ray.diffusion.parts import Family, PipelineConfig
from datainf_ray.model.files import local_folder
from datainf_ray.model.quiet import quiet

_SPARE = "text_encoder_3"  # which Stable Diffusion 3 does without
_SMALL = ["*.json", "*.txt", "*.model"]  # what a hub's pipeline is known by, without its weights


def pipeline_config(model: ModelConfig, options: Options | None = None, weights: bool = False) -> PipelineConfig:
    """What the folder of `model.base` says; with `weights` these are fetched, too. Raises `RequestError`."""
    folder = _folder(model, options, weights)
    index = _json(model, Path(folder) / "model_index.json")
    name = str(index.get("_class_name"))
    family = _family(model, name)
    classes, configs = {}, {}
    for part, told in index.items():
        if isinstance(told, list) and len(told) == 2 and all(isinstance(each, str) for each in told):
            classes[part] = (told[0], told[1])
    texts = [text for text in family.texts if text[1] in classes or text[1] != _SPARE]
    needed = [family.denoiser, "vae", "scheduler", *(part for text in texts for part in text[:2])]
    for part in needed:
        if part not in classes:
            raise RequestError("model.base", model.base, f"its model_index.json has no {part}", "copy all of the model")
        if part != "scheduler" and classes[part][0] not in ("diffusers", "transformers"):
            problem = f"its {part} is a {'.'.join(classes[part])}, and code of a pipeline's own is not run"
            raise RequestError("model.base", model.base, problem)
        file = {"scheduler": "scheduler_config.json"}.get(part, "config.json")
        if not part.startswith("tokenizer"):
            configs[part] = _json(model, Path(folder) / part / file)
    told = PipelineConfig(folder, family, classes, configs)
    _require_sound(model, told)
    return told


def require_there(model: ModelConfig, classes: Mapping[str, tuple[str, str]], parts: Iterable[str]) -> None:
    """Raises `RequestError` where the class of one of the `parts` is none of its library's."""
    for part in parts:
        library, name = classes[part]
        module = importlib.import_module(library)
        if name not in dir(module):  # which imports none of them
            problem = f"its {part} is {printable(name, 60)}, which {library} {module.__version__} does not have"
            raise RequestError("model.base", model.base, problem)


def _require_sound(model: ModelConfig, told: PipelineConfig) -> None:
    """Raises `RequestError` where a part is none that is known here, or its configuration says what cannot be."""
    require_there(model, told.classes, (told.family.denoiser, "vae", *(encoder for _, encoder, _ in told.texts)))
    if told.classes["vae"][1] != "AutoencoderKL":
        problem = f"its vae is {told.classes['vae'][1]}, and latents are taken of an AutoencoderKL"
        raise RequestError("model.base", model.base, problem)
    looks = {
        "vae": lambda: (told.vae_scale, told.latent_scale),
        told.family.denoiser: lambda: (told.side, told.unit),
        "scheduler": lambda: told.alphas,
    }
    for part, look in looks.items():
        try:
            look()
        except Exception as error:  # a configuration may say anything
            problem = f"its {part} cannot be understood: {one_line(error)[:200]}"
            raise RequestError("model.base", model.base, problem) from None


def _family(model: ModelConfig, name: str) -> Family:
    for family in FAMILIES:
        if name in family.pipelines:
            return family
    known = "; ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)
    problem = f"is a {name}, of which text-to-image does not know the loss: it knows {known}"
    raise RequestError(
        "model.base",
        model.base,
        problem,
        "write a task of your own, model.task: package.module:TASK (datainf_ray/tasks/README.md)",
    )


def _folder(model: ModelConfig, options: Options | None, weights: bool) -> str:
    folder = local_folder(model.base, "model.base", weights, options)
    if Path(folder).is_dir():
        return folder
    try:
        if not weights:
            from huggingface_hub import snapshot_download

            return snapshot_download(folder, allow_patterns=_SMALL)
        import diffusers

        with quiet():
            found: str = diffusers.DiffusionPipeline.download(folder, use_safetensors=True)
        return found
    except Exception as error:  # the hub's errors have no common type
        raise RequestError("model.base", model.base, f"cannot be fetched: {one_line(error)[:300]}") from None


def _json(model: ModelConfig, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        name = f"{file.parent.name}/{file.name}" if file.name != "model_index.json" else file.name
        problem = f"no {name} there, which a pipeline of diffusers has"
        raise RequestError("model.base", model.base, problem) from None
    except (ValueError, OSError, RecursionError) as error:
        raise RequestError("model.base", str(file), f"cannot be read: {one_line(error)[:200]}") from None
    if not isinstance(found, dict):
        raise RequestError("model.base", str(file), "is no JSON object")
    return found
