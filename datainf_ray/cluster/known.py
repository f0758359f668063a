"""What is known of a chunk's rows after a sweep, on its way from the rows or a gradient index to the run's files."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.corpus.passages import ROW_BYTES, as_json, encodable, shortened
from datainf_ray.corpus.thumbnails import MOST_BYTES
from datainf_ray.corpus.tokens import Example
from datainf_ray.runs.index import facts_schema
from datainf_ray.runs.schemas import OK

_ADDRESS = re.compile("0x[0-9a-fA-F]{6,}")  # an object's, in what an exception says: another one in every process

#: What is known of a chunk's rows after a sweep, but for their influence; `loss` is null where there is none.
FACTS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("tokens_cut", pa.int32()),  # null where an index of an earlier version is read
        pa.field("loss", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("preview", pa.string()),
        pa.field("text", pa.large_string()),  # as in texts.parquet; null where an index of an earlier version is read
        pa.field("predicted", pa.string()),
        pa.field("picture", pa.large_binary()),  # as in pictures.parquet; null where it has none
    ]
)


def facts_of(
    examples: Sequence[Example],
    losses: np.ndarray,
    status: Sequence[str],
    predicted: Sequence[str | None] | None = None,
) -> pa.Table:
    """The `FACTS` of a chunk's examples; `predicted` is what the model predicts for each, where that is known."""
    return pa.table(
        [
            [e.row for e in examples],
            [e.id for e in examples],
            [e.tokens for e in examples],
            [e.tokens_cut for e in examples],
            pa.array(losses, pa.float64(), mask=np.array([s != OK for s in status])),
            list(status),
            [_ADDRESS.sub("0x…", e.detail) for e in examples],
            [e.preview for e in examples],
            [as_json(shortened(e.passages, ROW_BYTES)) for e in examples],
            [None if one is None else encodable(one) for one in predicted or [None] * len(examples)],
            [e.picture if e.picture and len(e.picture) <= MOST_BYTES else None for e in examples],
        ],
        schema=FACTS,
    )


def facts_before(examples: Sequence[Example]) -> pa.Table:
    """The `FACTS` of examples of which no loss is known."""
    return facts_of(examples, np.full(len(examples), np.nan), [e.status for e in examples])


def facts_from_index(facts: pa.Table) -> pa.Table:
    """The `FACTS` of a part of a gradient index."""
    at = facts.schema.get_field_index("detail")
    facts = facts.set_column(at, "detail", pc.fill_null(facts["detail"], ""))  # an earlier version wrote none
    return facts.select(FACTS.names).cast(FACTS)


def facts_for_index(facts: pa.Table, sqnorms: np.ndarray, usable: np.ndarray) -> pa.Table:
    """The facts of a part of a gradient index; `sqnorms` are of the rows, of which some are `usable`."""
    schema = facts_schema()
    if facts["picture"].null_count == len(facts):  # as rows of text: their index has the bits that it always had
        schema = schema.remove(schema.get_field_index("picture"))
    total = pa.array(sqnorms, pa.float32(), mask=~usable)
    return facts.append_column("sqnorm", total).select(schema.names).cast(schema)
