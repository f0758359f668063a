"""Calling a transformers model with no more than it takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from datainf_ray.model.objective import Values

_BARE: ContextVar[bool] = ContextVar("bare", default=False)
_TAKEN: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def base_of(model: Any) -> Any:
    """The transformers model inside PEFT's."""
    bare = getattr(model, "get_base_model", None)
    return bare() if bare else model


@contextmanager
def bare_rows() -> Iterator[None]:
    """Inside, a model gets of a row what a user would call it with: its tokens and their types, and nothing of ours.

    That is what a batch's losses and gradients are compared with. A mask and positions are there for the batch's sake;
    given on both sides, what is wrong about them could not be seen.
    """
    before = _BARE.set(True)
    try:
        yield
    finally:
        _BARE.reset(before)


def is_bare() -> bool:
    """Whether the model is called on a bare row; see `bare_rows`."""
    return _BARE.get()


def taken(model: nn.Module) -> frozenset[str]:
    """The names of what may be given to the model."""
    known = _TAKEN.get(model)
    if known is None:
        known = _TAKEN[model] = frozenset(inspect.signature(base_of(model).forward).parameters)
    return known


def token_arguments(model: nn.Module, values: Values, masked: bool = True) -> dict[str, Tensor]:
    """What the model is called with for a batch of tokens; see `corpus.batches.token_tensors`.

    Without `masked` no mask: for batches that are padded on the right, and a causal model. Positions are left to the
    model: many count from another number than 0, and where padding is on the right all of them come by the right ones.
    Only a task of the user's own has `position_ids` among its values.
    """
    takes = taken(model)
    given = {"input_ids": values["input_ids"]}
    if "token_type_ids" in values and "token_type_ids" in takes:
        given["token_type_ids"] = values["token_type_ids"]
    if masked and not is_bare():
        given["attention_mask"] = values["attention_mask"]
        if "position_ids" in values and "position_ids" in takes:
            given["position_ids"] = values["position_ids"]
    return given


def padding(model: nn.Module, tokenizer: Any, vocabulary: int) -> int:
    """The token that rows of a batch are padded with: the model's own, by which some find where a row ends.

    Where it has none, the tokenizer's; one that was added to a tokenizer may be beyond the `vocabulary`.
    """
    config = getattr(base_of(model), "config", None)
    text: Any = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    ids = [getattr(text, "pad_token_id", None)]
    ids += [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
    return next((i for i in ids if isinstance(i, int) and 0 <= i < (vocabulary or 1)), 0)
