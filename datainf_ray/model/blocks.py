"""The blocks of a model: which of its tensors are attributed, under which names, and of which kind."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig

PREFIX = "base_model.model."  # PEFT's, before the base's own names
ADAPTER_NAME = "default"  #: what PEFT is told to call the adapter
_WRAPPERS = (ADAPTER_NAME, "modules_to_save")
_KINDS = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_A", "lora_B", "modules_to_save")


def block_name(name: str) -> str:
    """The name that a parameter has in the adapter's own file, less PEFT's prefix."""
    return ".".join(part for part in name.removeprefix(PREFIX).split(".") if part not in _WRAPPERS)


def name_blocks(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors by their blocks' names, in the model's order. ValueError where two have the same."""
    named: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = block_name(name)
            if block in named:
                raise ValueError(f"two of its tensors are called {block}: modules_to_save names one within another")
            named[block] = parameter
    return named


def kind_of(model: nn.Module, parameter: nn.Parameter) -> str:
    """Which part of the adapter a trainable tensor is."""
    name = next(n for n, p in model.named_parameters() if p is parameter)
    for kind in _KINDS:
        if kind in name.split("."):
            return kind
    return "bias" if name.endswith(".bias") else "other"


def choose_blocks(model: nn.Module, asked: ModelConfig) -> None:
    """Leave a gradient to the tensors that `model.blocks` asks for, of those that have one.

    Raises `RequestError` where a pattern fits none, where none is left, or where two have the same name.
    """
    try:
        named = name_blocks(model)
    except ValueError as error:
        raise RequestError("model.adapter", asked.adapter, str(error)) from None
    if not named:
        raise RequestError(
            "model.adapter", asked.adapter, "no trainable block, so there is nothing to take gradients of"
        )
    if asked.blocks is None:
        return
    for pattern in asked.blocks:
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in named):
            raise RequestError("model.blocks", pattern, "fits no block", f"the blocks are {_some(list(named))}")
    for name, parameter in named.items():
        parameter.requires_grad_(is_chosen(name, asked.blocks))
    if not any(parameter.requires_grad for parameter in named.values()):
        raise RequestError("model.blocks", list(asked.blocks), "leaves no block")


def is_chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a block is asked for: by the last of the patterns that fits; `!` takes out what fits behind it.

    Where the first pattern takes out, all others are asked for.

    >>> is_chosen("model.layers.0.self_attn.q_proj.lora_A.weight", ["*.lora_*", "!*.0.*"])
    False
    >>> is_chosen("model.norm.weight", ["!*.lora_*"])
    True
    """
    chosen = patterns[0].startswith("!")
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            chosen = not pattern.startswith("!")
    return chosen


def _some(names: list[str]) -> str:
    return f"{names[0]} …" if len(names) == 1 else f"{names[0]}, … {names[-1]}"
