"""How many tokens a row may have: what the model takes, and traces of the limit that the training had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from datainf_ray.model.forward import own_positions

_SILLY = 10**9  # tokenizers say 10^30 where they have no limit
_READ = 2**16  # bytes of a file
_KEYS = "sequence_len|cutoff_len|max_seq_length|max_seq_len|max_length"  # axolotl, LLaMA-Factory, TRL
_SETTING = re.compile(rf"^[ \t]*({_KEYS})[ \t]*[:=][ \t]*(\d{{1,9}})[ \t]*(?:#.*)?$", re.MULTILINE)


def longest_row(config: Any, base: Any = None) -> int | None:
    """Tokens that a model of this configuration has positions for; None where it says none, as XLNet says −1.

    `base`, the model itself, tells whether its positions begin behind the padding's.
    """
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(limit, int) or not 0 < limit < _SILLY:
        return None
    tables = [hasattr(module, "position_embeddings") for module in ([] if base is None else own_positions(base))]
    if any(tables) or "roberta" in str(config.model_type):
        limit -= (config.pad_token_id or 0) + 1
    return limit


def is_rotary(config: Any) -> bool:
    """Whether the model turns its positions into angles as it needs them, so that there are more than it says.

    GPT-J and its kin have a table of angles (`rotary_dim`), which ends.
    """
    if getattr(config, "position_embedding_type", None) not in (None, "rotary", "rope"):
        return False
    return any(getattr(config, name, None) for name in ("rope_parameters", "rope_theta", "rope_scaling"))


def traces(folder: str | Path, tokenizer: Any) -> tuple[tuple[str, int], ...]:
    """What tells the training's own limit, and that limit in tokens, least first.

    The tokenizer's model_max_length, and the truncation that a tokenizer.json keeps of the call it was last used with,
    so it must be a tokenizer that has cut nothing yet; and the settings in README.md and the YAML files of the
    adapter's `folder`, as axolotl and LLaMA-Factory write them.
    """
    found: dict[str, int] = {}
    if tokenizer is not None:
        found["the tokenizer's model_max_length"] = tokenizer.model_max_length
        kept = getattr(getattr(tokenizer, "backend_tokenizer", None), "truncation", None)
        if kept:
            found["the truncation in tokenizer.json"] = kept["max_length"]
    for path in sorted(Path(folder).glob("*")):
        if path.suffix in (".yaml", ".yml") or path.name == "README.md":
            with path.open("rb") as file:
                text = file.read(_READ).decode(errors="replace")
            for key, value in _SETTING.findall(text):
                found.setdefault(f"{key} in the adapter's {path.name}", int(value))
    known = ((what, limit) for what, limit in found.items() if isinstance(limit, int) and 0 < limit < _SILLY)
    return tuple(sorted(known, key=lambda pair: pair[1]))
