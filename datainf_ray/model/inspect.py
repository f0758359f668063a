"""What can be known of a model before any weight is loaded: its blocks, whether the adapter fits, its tokenizer.

The base is built on torch's meta device, where tensors have shapes and no storage, and the adapter's file is read as
far as its header. So a mistake is found in seconds on the driver, whatever the size of the model.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.influence.block import Block
from datainf_ray.model.files import ADAPTER_WEIGHTS, adapter_folder, local_folder
from datainf_ray.model.limits import is_rotary, longest_row
from datainf_ray.model.objective import Objective
from datainf_ray.model.weights import require_sound_adapter, require_sound_base

ADAPTER_NAME = "default"
_KINDS = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_A", "lora_B", "modules_to_save")
_QUIET, _within, _loud = threading.Lock(), 0, ExitStack()  # what `quiet` shares; _loud puts the settings back
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class ModelFacts:
    """What the driver and the workers must agree on."""

    blocks: tuple[Block, ...]
    base_parameters: int
    task: dict[str, Any] = field(default_factory=dict)  # what the task knows of the model, in plain values
    max_length: int | None = None  # tokens; None where the model states no limit
    hidden_size: int = 0
    vocabulary: int = 0
    rotary: bool = False  # its positions are rotary: rows may be longer than max_length
    token_types: int | None = None  # None where the model does not say

    @property
    def parameters(self) -> int:
        """The number of trainable parameters, Σ_l d_l."""
        return sum(block.size for block in self.blocks)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' and peft's advice and progress bars out of our output; their errors still raise.

    These are settings of the process, and runs may overlap: the first thread within changes them, and the last one to
    leave puts them back.
    """
    global _within
    with _QUIET:
        if _within == 0:
            _loud.enter_context(_silenced())
        _within += 1
    try:
        yield
    finally:
        with _QUIET:
            _within -= 1
            if _within == 0:
                _loud.close()


@contextmanager
def _silenced() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    peft = logging.getLogger("peft")
    before = peft.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    peft.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # between the libraries: nothing that a user could mend
            yield
    finally:
        transformers_logging.set_verbosity(level)
        peft.setLevel(before)
        if bars:
            transformers_logging.enable_progress_bar()


def adapter_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the adapter's weight file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise RequestError(
            "model.adapter", f"{folder}/{ADAPTER_WEIGHTS}", f"cannot be read: {one_line(error)}"
        ) from None


def base_config(
    model: ModelConfig, settings: dict[str, Any], weights: bool = False, options: Options | None = None
) -> tuple[Any, str]:
    """The base model's transformers configuration, with `settings`, and the folder (or hub id) it was read from."""
    from transformers import AutoConfig

    folder = local_folder(model.base, "model.base", weights, options)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code, **settings)
    except Exception as error:  # OSError, ValueError, KeyError and what remote code raises: none of it can be loaded
        raise RequestError("model.base", model.base, f"cannot be loaded: {one_line(error)[:300]}") from None
    return config, folder


def peft_config(folder: str) -> Any:
    from peft import PeftConfig

    try:
        with quiet():
            config = PeftConfig.from_pretrained(folder)
    except Exception as error:  # a type it does not know, a missing field, a broken file
        raise RequestError("model.adapter", f"{folder}/adapter_config.json", one_line(error)[:300]) from None
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise RequestError("model.adapter", folder, f"peft_type is {kind}", "datainf-ray attributes LORA adapters")
    config.inference_mode = False
    return config


def name_blocks(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors by the names that the adapter's own file gives them, less PEFT's prefix."""
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.removeprefix("base_model.model.").split(".")
            parts = [p for p in parts if p not in (ADAPTER_NAME, "modules_to_save")]
            named[".".join(parts)] = parameter
    return named


def kind_of(model: nn.Module, parameter: nn.Parameter) -> str:
    """Which part of the adapter a trainable tensor is."""
    name = next(n for n, p in model.named_parameters() if p is parameter)
    for kind in _KINDS:
        if kind in name.split("."):
            return kind
    return "bias" if name.endswith(".bias") else "other"


def inspect_model(model: ModelConfig, task: Objective, options: Options | None = None) -> ModelFacts:
    """The facts of base and adapter, or a `RequestError` that says what does not fit. Loads no weights.

    Weights are looked at as far as `weights` says: those that cannot be used are a `RequestError`, too.
    Here as in the functions below, `options` are what a store is opened with.
    """
    folder = adapter_folder(model, options)
    shapes = adapter_shapes(folder)
    adapter = peft_config(folder)
    config, _ = base_config(model, task.configure(shapes), options=options)
    own = task.facts(model, config)
    adapter.init_lora_weights = True  # some initialisations read the base's weights, which are not here
    try:
        with quiet(), torch.device("meta"):
            from peft import get_peft_model

            base = task.model_class().from_config(config, trust_remote_code=model.trust_remote_code)
            parameters = sum(p.numel() for p in base.parameters())
            wrapped = get_peft_model(base, adapter, adapter_name=ADAPTER_NAME)
    except Exception as error:  # peft says ValueError for most misfits, torch and transformers have their own
        raise _misfit(model, one_line(error)[:300]) from None
    _must_fit(model, wrapped, shapes)
    require_sound_adapter(model, folder)
    require_sound_base(model, options)
    blocks = tuple(Block(n, kind_of(wrapped, p), tuple(p.shape)) for n, p in name_blocks(wrapped).items())
    if not blocks:
        raise RequestError(
            "model.adapter", model.adapter, "no trainable block, so there is nothing to take gradients of"
        )
    text = config.get_text_config()
    return ModelFacts(
        blocks=blocks,
        base_parameters=parameters,
        task=own,
        max_length=longest_row(text, base),
        hidden_size=getattr(text, "hidden_size", 0) or 0,
        vocabulary=getattr(text, "vocab_size", 0) or 0,
        rotary=is_rotary(text),
        token_types=getattr(text, "type_vocab_size", None) or None,
    )


def _must_fit(model: ModelConfig, wrapped: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Every tensor of the adapter's file has its place and its shape in the model, and none is wanting."""
    from peft import get_peft_model_state_dict

    with quiet():
        state = get_peft_model_state_dict(wrapped, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    expected = {key: tuple(value.shape) for key, value in state.items()}
    for key in sorted(expected.keys() - shapes.keys()):
        raise _misfit(model, f"{ADAPTER_WEIGHTS} has no {key}")
    for key in sorted(shapes.keys() - expected.keys()):
        raise _misfit(model, f"the base has no place for {key}")
    for key, shape in shapes.items():
        if shape != expected[key]:
            raise _misfit(model, f"{key} is {_by(shape)} in the adapter and {_by(expected[key])} in the base")


def _misfit(model: ModelConfig, what: str) -> RequestError:
    return RequestError("model.adapter", model.adapter, f"does not fit the base {model.base}: {what}")


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def load_tokenizer(model: ModelConfig, options: Options | None = None) -> Any:
    """The adapter's tokenizer where it brings one (chat templates and added tokens are saved there), else the base's.

    None where neither has one, which is fine for rows of token ids.
    """
    from transformers import AutoTokenizer

    own = Path(adapter_folder(model, options))
    has_one = (own / "tokenizer_config.json").is_file()
    folder = own if has_one else local_folder(model.base, "model.base", weights=False, options=options)
    if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=model.trust_remote_code)
    except Exception as error:  # no common type: a missing file, a missing package, a class it does not know
        raise RequestError("model.base", model.base, f"no tokenizer can be loaded: {one_line(error)[:300]}") from None
