"""Rows that bring their tokens: ids, and the lists beside them that say something of each.

attention_mask: tokens that it hides at either end are padding, and are dropped with all that is said of them; whatever
the training's own padding was, the row's loss does not depend on it. token_type_ids go to a model that takes them.
position_ids are those that the model counts by itself, 0, 1, 2 and so on, or the row cannot be used: what begins anew
is several texts in one row, which have no influence of their own. So are seq_lengths of more than one text, as TRL's
packing has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datainf_ray.corpus.targets import mask_of
from datainf_ray.corpus.tokens import EncoderSpec, Fields

#: Roles of what a row may say of each of its tokens, besides what its targets are.
BESIDE = ("attention_mask", "token_type_ids", "position_ids")
#: The role of the lengths of the texts that are packed into a row.
LENGTHS = "seq_lengths"


def unpadded(fields: Fields, beside: Sequence[str] = BESIDE) -> dict[str, Any]:
    """The row without its padding: input_ids and the lists `beside` them, less what only the padding needed.

    Raises ValueError where a list is not as long as input_ids, or says what cannot be honoured.

    Example: `unpadded({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}) == {"input_ids": [5, 6]}`.
    """
    length = len(fields["input_ids"])
    packed = fields.get(LENGTHS)
    if packed is not None and len(packed) > 1:
        raise ValueError(f"{LENGTHS} has {len(packed)} lengths: only one text in a row can be used")
    there = [role for role in ("input_ids", *beside) if role in fields]
    for role in there:
        if len(fields[role]) != length:
            raise ValueError(f"{length} input_ids but {len(fields[role])} {role}")
    kept = range(length)
    if "attention_mask" in fields:
        seen = [k for k, bit in enumerate(mask_of(fields, "attention_mask", length)) if bit]
        kept = range(seen[0], seen[-1] + 1) if seen else range(0)
        if len(kept) != len(seen):
            raise ValueError("attention_mask hides tokens between others; only padding at an end can be left out")
    row = dict(fields) | {role: list(fields[role][kept.start : kept.stop]) for role in there}
    row.pop("attention_mask", None)
    row.pop(LENGTHS, None)
    positions = row.pop("position_ids", None)
    if positions is not None:
        odd = next((k for k, position in enumerate(positions) if position != k or isinstance(position, bool)), None)
        if odd is not None:
            raise ValueError(
                f"position_ids has {positions[odd]!r} for token {odd}: only 0, 1, 2, … can be used, one text in a row"
            )
    return row


def token_types(spec: EncoderSpec, types: Sequence[Any]) -> list[int]:
    """The row's token_type_ids, as they are. Raises ValueError where one is none that the model has."""
    limit = spec.token_types or spec.vocabulary
    for one in types:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0 or (limit is not None and one >= limit):
            there = "" if limit is None else f" of the model's {limit}"
            raise ValueError(f"token_type_ids holds {one!r}, which is no token type{there}")
    return list(types)
