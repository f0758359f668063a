"""Which of the rows whose texts a run keeps are near-duplicates of one that its report lists."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datainf_ray.common.errors import RequestError
from datainf_ray.config import PICTURES
from datainf_ray.corpus.alike import Texts, pieces_of
from datainf_ray.corpus.passages import Passage, shortened

#: Of all texts together that are compared, 28 MB of them a second: of longer ones the ends of each.
_BYTES = 32 * 2**20
_SHOWN = 5  # near-duplicates of a row that are named
_LOOKED_AT = 200  # of those that may be near-duplicates of a row: where thousands are, that is known by then


@dataclass(frozen=True)
class Near:
    """The near-duplicates of some rows, by number, the most alike first; and why nobody looked, if so."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    problem: str | None = None


def near_among(said: Mapping[int, Sequence[Passage]], rows: Collection[int], config: Mapping[str, Any]) -> Near:
    """Near-duplicates of `rows` among those of which it is known what they say, by the rule of `corpus.alike`.

    The label is no part of a text: rows of the same text and other labels are near-duplicates. Pictures of the same
    caption need not be alike, and are not compared.
    """
    if config["model"]["task"] == PICTURES or not said:
        return Near()
    try:
        known = Texts()
    except RequestError as error:
        return Near(problem=f"Near-duplicates are not looked for: that {error.problem}; {error.remedy}.")
    room = _BYTES // len(said)
    pieces = {}
    for row, passages in said.items():
        texts = [one for one in passages if one.role != "label"]
        pieces[row] = pieces_of(one.text for one in shortened(texts, room))
        known.add(row, pieces[row])
    found = {}
    for row in sorted(rows):
        like = known.like(pieces.get(row, []), _LOOKED_AT)
        like.pop(row, None)
        if like:
            found[row] = sorted(like, key=lambda one: (-like[one], one))
    return Near(found)


def named(
    near: Near, row: int, ids: Mapping[int, str], labels: Mapping[int, str], shown: Collection[int]
) -> dict[str, Any] | None:
    """What the page says of a row's near-duplicates: the first of them, and how many `more` there are; `many` where
    not all were looked at. Each is `linked` where it is on the page, and has its label where that is another than the
    row's. None where there are none.
    """
    like = near.rows.get(row)
    if not like:
        return None
    first = [
        {
            "row": one,
            "id": ids[one],
            "linked": one in shown,
            "label": None if labels.get(one) == labels.get(row) else labels.get(one),
        }
        for one in like[:_SHOWN]
    ]
    return {"first": first, "more": len(like) - len(first), "many": len(like) >= _LOOKED_AT - 1}
