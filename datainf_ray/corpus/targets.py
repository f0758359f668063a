"""Which tokens of a row have a loss: what `targets` may say of each kind of row, and masks as labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datainf_ray.common.errors import RequestError

IGNORED = -100  #: a label that is no target, as everywhere in PyTorch

#: What `targets` may be for each kind of row of a causal language model.
TAKES: Mapping[str, tuple[str, ...]] = {
    "text": ("auto", "all"),
    "prompt-completion": ("auto", "all", "completion", "assistant", "last-assistant"),
    "messages": ("auto", "all", "assistant", "last-assistant"),
    "tokens": ("auto", "all", "completion", "assistant", "last-assistant"),
}
#: Roles of masks that say which of a row's tokens are targets.
MASK_ROLES = ("completion_mask", "assistant_masks")
#: The role that a row of tokens must have for what `targets` says.
MASKS = {"completion": "completion_mask", "assistant": "assistant_masks", "last-assistant": "assistant_masks"}


def check_targets(
    kind: str,
    targets: str,
    key: str,
    roles: Collection[str] = (),
    takes: Mapping[str, Sequence[str]] = TAKES,
) -> None:
    """Raises `RequestError` naming `key` where `targets` makes no sense for this kind of row.

    `roles` are those that the corpus has columns for; `takes` says what each kind may have, and any kind that is not
    in it may have auto alone.
    """
    allowed = takes.get(kind, ("auto",))
    if targets not in allowed:
        raise RequestError(
            f"{key}.targets", targets, f"has no meaning for rows of {kind}", f"use {' or '.join(allowed)}"
        )
    mask = MASKS.get(targets)
    if kind == "tokens" and mask is not None and mask not in roles:
        raise RequestError(
            f"{key}.targets", targets, f"rows of tokens need {mask} for it", f"map a column: {{{mask}: name}}"
        )


def labels_of(fields: Mapping[str, Any], ids: Sequence[int], targets: str = "auto") -> tuple[list[int], str]:
    """The labels of a row of tokens, and in words what made them targets.

    auto: `labels` where the row has them, else the tokens that every mask it has lets through, else all. `completion`
    takes completion_mask, `assistant` assistant_masks, and `last-assistant` the last run of ones in those; labels do
    not count then. Raises ValueError where a mask is none, or is not as long as the row.

    Example: `labels_of({"completion_mask": [0, 0, 1]}, [5, 6, 2]) == ([-100, -100, 2], "completion_mask")`.
    """
    if targets == "all":
        return list(ids), "every token"
    if targets == "auto" and "labels" in fields:
        return list(fields["labels"]), "labels"
    names = [MASKS[targets]] if targets in MASKS else [role for role in MASK_ROLES if role in fields]
    masks = [mask_of(fields, name, len(ids)) for name in names]
    if targets == "last-assistant":
        masks = [_last_run(mask) for mask in masks]
    labels = [token if all(bits) else IGNORED for token, *bits in zip(ids, *masks, strict=True)]
    return labels, " and ".join(names) + (", its last run" if targets == "last-assistant" else "") or "every token"


def mask_of(fields: Mapping[str, Any], role: str, length: int) -> list[int]:
    """The row's mask of `length` zeros and ones. Raises ValueError where it is none."""
    mask = fields[role]
    if len(mask) != length:
        raise ValueError(f"{length} input_ids but {len(mask)} in {role}")
    for bit in mask:
        if not isinstance(bit, int) or bit not in (0, 1):  # True and False are 1 and 0
            raise ValueError(f"{role} holds {bit!r}, which is neither 0 nor 1")
    return [int(bit) for bit in mask]


def _last_run(mask: Sequence[int]) -> list[int]:
    """The mask with its last run of ones alone."""
    end = len(mask) - next((k for k, bit in enumerate(reversed(mask)) if bit), len(mask))
    start = end
    while start and mask[start - 1]:
        start -= 1
    return [int(start <= k < end) for k in range(len(mask))]
