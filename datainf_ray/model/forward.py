"""Calling a transformers model with no more than it takes."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from datainf_ray.model.objective import Values

#: What embeddings have that derive positions from the padding, and count from another number: RoBERTa's, MPNet's, …
_OWN_POSITIONS = ("create_position_ids_from_input_ids", "create_position_ids_from_inputs_embeds")

_TAKEN: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def base_of(model: Any) -> Any:
    """The transformers model inside PEFT's."""
    bare = getattr(model, "get_base_model", None)
    return bare() if bare else model


def taken(model: nn.Module) -> frozenset[str]:
    """The names of what may be given to the model, less `position_ids` where it finds them by itself."""
    known = _TAKEN.get(model)
    if known is None:
        base = base_of(model)
        known = frozenset(inspect.signature(base.forward).parameters)
        if own_positions(base):
            known -= {"position_ids"}
        _TAKEN[model] = known
    return known


def own_positions(model: nn.Module) -> list[nn.Module]:
    """The modules that derive positions from the padding by themselves, and begin behind its own, as RoBERTa's does."""
    return [module for module in model.modules() if any(hasattr(module, name) for name in _OWN_POSITIONS)]


def token_arguments(model: nn.Module, values: Values, masked: bool = True) -> dict[str, Tensor]:
    """What the model is called with for a batch of tokens; see `corpus.batches.token_tensors`.

    Without `masked` neither a mask nor positions: for batches that are padded on the right, and a causal model.
    """
    takes = taken(model)
    given = {"input_ids": values["input_ids"]}
    if "token_type_ids" in values and "token_type_ids" in takes:
        given["token_type_ids"] = values["token_type_ids"]
    if masked:
        given["attention_mask"] = values["attention_mask"]
        if "position_ids" in values and "position_ids" in takes:
            given["position_ids"] = values["position_ids"]
    return given
