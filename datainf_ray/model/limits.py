"""How many tokens a row may have: what the model takes, and traces of the limit that the training had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

_SILLY = 10**9  # tokenizers say 10^30 where they have no limit
_READ = 2**16  # bytes of a file
_KEYS = "sequence_len|cutoff_len|max_seq_length|max_seq_len|max_length"  # axolotl, LLaMA-Factory, TRL
_SETTING = re.compile(rf"^[ \t]*({_KEYS})[ \t]*[:=][ \t]*(\d{{1,9}})[ \t]*(?:#.*)?$", re.MULTILINE)


#: The tags of a README.md that TRL's `SFTTrainer` has part in, and its max_length where nobody sets another.
_TRL, _TRL_DEFAULT = (re.compile(r"^- trl$", re.MULTILINE), re.compile(r"^- sft$", re.MULTILINE)), 1024


class Trace(NamedTuple):
    """What tells a limit that the training had; where it is not `certain`, one that it had unless told otherwise."""

    what: str
    tokens: int
    certain: bool = True


def longest_row(config: Any, base: nn.Module | None = None) -> int | None:
    """Tokens that a model of this configuration has positions for; None where it says none, as XLNet says −1.

    `base`, the model itself, may be without storage. It tells whether its positions begin behind the padding's: then
    its table of positions is one with a row for padding, and `max_position_embeddings` counts what is never used.
    """
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(limit, int) or not 0 < limit < _SILLY:
        return None
    if base is None:
        return limit - (config.pad_token_id or 0) - 1 if "roberta" in str(config.model_type) else limit
    tables = [
        module
        for name, module in base.named_modules()
        if "position" in name.rpartition(".")[2] and hasattr(module, "weight")
    ]
    sized = [table for table in tables if isinstance(table.weight, nn.Parameter) and len(table.weight) == limit]
    padding = [getattr(table, "padding_idx", None) for table in sized]  # I-BERT's table is no nn.Embedding
    return limit - max((index + 1 for index in padding if index is not None), default=0)


def is_rotary(config: Any) -> bool:
    """Whether the model turns its positions into angles as it needs them, so that there are more than it says.

    GPT-J and its kin have a table of angles (`rotary_dim`), which ends.
    """
    if getattr(config, "position_embedding_type", None) not in (None, "rotary", "rope"):
        return False
    return any(getattr(config, name, None) for name in ("rope_parameters", "rope_theta", "rope_scaling"))


def traces(folder: str | Path | None, tokenizer: Any) -> tuple[Trace, ...]:
    """What tells the training's own limit, least first.

    The tokenizer's model_max_length, and the truncation that a tokenizer.json keeps of the call it was last used with,
    so it must be a tokenizer that has cut nothing yet; and the settings in README.md and the YAML files of the
    adapter's `folder`, if there is one, as axolotl and LLaMA-Factory write them. A README.md that names TRL's
    `SFTTrainer` tells its default.
    """
    found: dict[str, int] = {}
    guessed = []
    if tokenizer is not None:
        found["the tokenizer's model_max_length"] = tokenizer.model_max_length
        kept = getattr(getattr(tokenizer, "backend_tokenizer", None), "truncation", None)
        if kept:
            found["the truncation in tokenizer.json"] = kept["max_length"]
    for path in [] if folder is None else sorted(Path(folder).glob("*")):
        if path.suffix in (".yaml", ".yml") or path.name == "README.md":
            with path.open("rb") as file:
                text = file.read(_READ).decode(errors="replace")
            for key, value in _SETTING.findall(text):
                found.setdefault(f"{key} in the adapter's {path.name}", int(value))
            if all(tag.search(text) for tag in _TRL):
                guessed.append(
                    Trace(f"the default of TRL, which the adapter's {path.name} names,", _TRL_DEFAULT, certain=False)
                )
    known = [Trace(what, limit) for what, limit in found.items() if isinstance(limit, int) and 0 < limit < _SILLY]
    return tuple(sorted([*known, *guessed], key=lambda trace: trace.tokens))
