"""A PEFT adapter's files: how it was made, and the names and shapes of its tensors. Reads no values."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.model.files import ADAPTER_PICKLE, ADAPTER_WEIGHTS, adapter_folder
from datainf_ray.model.quiet import quiet

#: Kinds of adapters without tensors of their own in the model's layers, or that need more than a row to be called.
_REFUSED = {
    "ADAPTION_PROMPT": "its prompts are no part of a layer",
    "BOFT": "PEFT cannot lay it out without the base's weights",
    "POLY": "it is called with a number for each row's task",
    "SHIRA": "PEFT cannot lay it out without the base's weights",
    "XLORA": "it is a mixture of other adapters",
}
#: What `init_lora_weights` may say that draws the base's own weights at random, every time that it is loaded.
_DRAWN = "pissa_niter_"
#: What it may say that a worker alone can do: it quantizes the base.
_UNTRIED = ("loftq",)


@dataclass(frozen=True)
class Adapter:
    """An adapter as its files have it."""

    folder: str  #: here
    config: Any  #: PEFT's, set for training
    shapes: Mapping[str, tuple[int, ...]]  #: of the file's tensors, by the names that they have there

    @property
    def kind(self) -> str:
        """What PEFT calls this kind of adapter: LORA, IA3, …"""
        return _kind(self.config)

    @property
    def pickled(self) -> bool:
        return not (Path(self.folder) / ADAPTER_WEIGHTS).is_file()


def read_adapter(model: ModelConfig, options: Options | None = None) -> Adapter | None:
    """The adapter, fetched where it is elsewhere; None where the model has none. Raises `RequestError`."""
    folder = adapter_folder(model, options)
    return None if folder is None else Adapter(folder, _peft_config(folder), _shapes(folder))


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _peft_config(folder: str) -> Any:
    from peft import PeftConfig

    where = f"{folder}/adapter_config.json"
    try:
        with quiet():
            config = PeftConfig.from_pretrained(folder)
    except Exception as error:  # a type it does not know, a missing field, a broken file
        raise RequestError("model.adapter", where, one_line(error)[:300]) from None
    kind = _kind(config)
    why = "it puts prompts before the rows" if config.is_prompt_learning else _REFUSED.get(kind)
    if why is not None:
        raise RequestError(
            "model.adapter",
            folder,
            f"peft_type is {kind}: {why}",
            "datainf-ray attributes adapters of layers, as LORA",
        )
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith(_DRAWN):
        raise RequestError(
            "model.adapter",
            where,
            f"init_lora_weights is {start}, which draws another base at every load: nobody has the trained model's",
            "save it as plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…), as PEFT has it",
        )
    if kind == "LORA" and isinstance(start, str) and start not in _UNTRIED:
        _require_start(where, start)
    if getattr(config, "monteclora_config", None) is not None:
        raise RequestError(
            "model.adapter", where, "monteclora_config: its weights are drawn at random while it is trained"
        )
    config.inference_mode = False
    return config


def _require_start(where: str, start: Any) -> None:
    """Raises `RequestError` where PEFT cannot load LoRA that started so, on the smallest layer that there is."""
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    try:
        with quiet():
            config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=start)
            inject_adapter_in_model(config, nn.Sequential(nn.Linear(4, 4)))
    except ValueError as error:
        raise RequestError("model.adapter", where, f"init_lora_weights is {start}: {one_line(error)[:200]}") from None


def _shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapter's tensors, from its file's header; of a pickle, from what it holds."""
    if not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        return {key: tuple(tensor.shape) for key, tensor in read_pickled(folder, "meta").items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise RequestError(
            "model.adapter", f"{folder}/{ADAPTER_WEIGHTS}", f"cannot be read: {one_line(error)}"
        ) from None


def read_pickled(folder: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of an adapter that is saved as a pickle, by name. Raises `RequestError` where it holds anything else.

    Nothing in it is run: tensors are rebuilt, and torch refuses the rest.
    """
    file = f"{folder}/{ADAPTER_PICKLE}"
    remedy = "save it again with safe_serialization=True"
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:  # torch's text is on how to run it all the same
        raise RequestError(
            "model.adapter", file, "is a pickle of more than tensors, and none of it was run", remedy
        ) from None
    except Exception as error:  # zip and torch have their own classes, and the file may hold anything
        raise RequestError("model.adapter", file, f"cannot be read: {one_line(error)[:200]}", remedy) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise RequestError("model.adapter", file, "is a pickle of something else than tensors by name", remedy)
    return {str(key): tensor.detach() for key, tensor in state.items()}
