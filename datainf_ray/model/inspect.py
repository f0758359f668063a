"""What can be known of base and adapter without loading weights.

The driver builds both on the meta device, so that a mistake is found in seconds, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.storage import Options
from datainf_ray.common.words import printable
from datainf_ray.config import ModelConfig
from datainf_ray.influence.block import Block
from datainf_ray.model.adapter import Adapter
from datainf_ray.model.assemble import UnusableBaseError, assemble
from datainf_ray.model.blocks import kind_of, name_blocks
from datainf_ray.model.files import ADAPTER_PICKLE, adapter_folder, local_folder
from datainf_ray.model.limits import is_rotary, longest_row
from datainf_ray.model.objective import Objective
from datainf_ray.model.quiet import quiet
from datainf_ray.model.weights import require_sound_adapter, require_sound_base

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
    row_bytes: int = 0  # of a row's values in memory, where they are more than some tokens
    notes: tuple[str, ...] = ()  # what a user should know of base and adapter

    @property
    def parameters(self) -> int:
        """The number of trainable parameters, Σ_l d_l."""
        return sum(block.size for block in self.blocks)


def inspect_model(model: ModelConfig, task: Objective, options: Options | None = None) -> ModelFacts:
    """The facts of base and adapter, or a `RequestError` that says what does not fit. Loads no weights.

    Weights are looked at as far as `weights` says: those that cannot be used are a `RequestError`, too.
    Here as in the functions below, `options` are what a store is opened with.
    """
    if task.inspect is not None:
        known: ModelFacts = task.inspect(model, options)
        return known
    checkpoint = require_sound_base(model, options)
    found = assemble(model, task, options)
    if checkpoint is not None:
        try:
            with quiet():
                found.require_complete(checkpoint)
        except UnusableBaseError as error:
            raise RequestError("model.base", model.base, str(error)) from None
    if found.adapter is not None:
        require_sound_adapter(model, found.adapter.folder)
    blocks = tuple(Block(n, kind_of(found.model, p), tuple(p.shape)) for n, p in name_blocks(found.model).items())
    text = found.config.get_text_config()
    return ModelFacts(
        blocks=blocks,
        base_parameters=found.base_parameters,
        task=found.facts,
        max_length=longest_row(text, found.model),
        hidden_size=getattr(text, "hidden_size", 0) or 0,
        vocabulary=found.rows or getattr(text, "vocab_size", 0) or 0,
        rotary=is_rotary(text),
        token_types=getattr(text, "type_vocab_size", None) or None,
        notes=() if found.adapter is None else tuple(_notes(model, found.adapter)),
    )


def _notes(model: ModelConfig, adapter: Adapter) -> Iterator[str]:
    trained_on = getattr(adapter.config, "base_model_name_or_path", None)
    if trained_on and _last(trained_on) != _last(model.base):
        name = printable(str(trained_on))
        yield f"adapter_config.json says that it was trained on {name}, and model.base has another name"
    if adapter.pickled:
        yield f"{ADAPTER_PICKLE} is a pickle: only tensors were read from it, and nothing was run"


def _last(place: str) -> str:
    """The last part of a path or of a hub id."""
    return place.rstrip("/").rpartition("/")[2].lower()


def load_tokenizer(model: ModelConfig, options: Options | None = None, task: Objective | None = None) -> Any:
    """The `task`'s own tokenizer where it loads one; else the adapter's where it brings one, else the base's.

    Chat templates and added tokens are saved with an adapter. None where neither has a tokenizer, which is fine for
    rows of token ids.
    """
    if task is not None and task.tokenizer is not None:
        return task.tokenizer(model, options)
    from transformers import AutoTokenizer

    adapter = adapter_folder(model, options)
    if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file():
        folder = adapter
    else:
        folder = local_folder(model.base, "model.base", weights=False, options=options)
    if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # no common type: a missing file, a missing package, a class it does not know
        raise RequestError("model.base", model.base, f"no tokenizer can be loaded: {one_line(error)[:300]}") from None
