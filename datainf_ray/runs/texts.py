"""The full texts of the rows of top.parquet and of the queries, and the previews that follow from both together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.corpus.common_words import Rarity
from datainf_ray.corpus.passages import Passage, as_json, from_json, shortened
from datainf_ray.corpus.preview import LONGER, finder, line_of

TEXTS = "texts.parquet"
ROW, QUERY = "row", "query"  #: what `kind` says
#: Rows of a query of many rows, of which the texts are kept.
SHOWN = 3


def texts_schema() -> pa.Schema:
    """The schema of texts.parquet: a row for each training row of top.parquet, then some rows of each query.

    `number` is the training row's, or the query's; `place` counts the rows of a query from 0, and is 0 for a training
    row; `id` is that of the row. `text` is a JSON list of what it says, `{"role": …, "text": …}`, with `"answer": true`
    where it is what the model is to say. `cut` is how many characters have been left out of it: each text that has lost
    its middle says so, with `"cut"`. `text` is null where it is not known.
    """
    return pa.schema(
        [
            pa.field("kind", pa.string(), nullable=False),
            pa.field("number", pa.int64(), nullable=False),
            pa.field("place", pa.int32(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("cut", pa.int64(), nullable=False),
        ]
    )


def texts_of_rows(rows: pa.Table) -> pa.Table:
    """The part of texts.parquet that is of training rows, from their columns row, id, text."""
    return _texts(ROW, rows["row"].to_pylist(), [0] * len(rows), rows["id"].to_pylist(), rows["text"].to_pylist())


def texts_of_queries(numbers: list[int], ids: list[str], texts: list[str | None]) -> pa.Table:
    """The part of texts.parquet that is of queries, from the number, id and text of some of their rows."""
    seen: dict[int, itertools.count[int]] = {}
    places = [next(seen.setdefault(number, itertools.count())) for number in numbers]
    return _texts(QUERY, numbers, places, ids, texts)


def _texts(kind: str, numbers: list[int], places: list[int], ids: list[str], texts: list[str | None]) -> pa.Table:
    cut = [sum(passage.cut for passage in from_json(text)) for text in texts]
    columns = [[kind] * len(numbers), numbers, places, ids, texts, cut]
    schema = texts_schema()
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def with_less_text(rows: pa.Table, most: int) -> pa.Table:
    """The rows with at most `most` bytes in each value of their column `text`, as far as `shortened` goes."""
    long = pc.fill_null(pc.greater(pc.binary_length(rows["text"]), most), False)
    if not pc.any(long).as_py():
        return rows
    at = rows.schema.get_field_index("text")
    field = rows.schema.field(at)
    texts = [
        as_json(shortened(from_json(text), most)) if much else text
        for text, much in zip(rows["text"].to_pylist(), long.to_pylist(), strict=True)
    ]
    return rows.set_column(at, field, pa.array(texts, field.type))


def with_previews(tops: pa.Table, texts: pa.Table, own: bool = False) -> pa.Table:
    """top.parquet with previews that show what each row has in common with its query and with few others.

    Where a row's text is not known its preview stays as it is, and so does one that is a task's `own`. Time is in
    proportion to the texts, each as often as a query lists it.
    """
    rows, queries = said_by(texts, ROW), said_by(texts, QUERY)
    rarity = Rarity(_joined(one) for one in itertools.chain(rows.values(), queries.values()))
    previews = []
    numbers, asked = tops["row"].to_pylist(), tops["query"].to_pylist()
    find, query = None, -1
    for row, number, preview in zip(numbers, asked, tops["preview"].to_pylist(), strict=True):
        if number != query:  # they are sorted by query
            query = number
            find = finder(_joined(queries[query]), rarity) if query in queries else None
        kept = (own and preview is not None) or not rows.get(row)
        previews.append(preview if kept else line_of(rows[row], LONGER, find))
    at = tops.schema.get_field_index("preview")
    return tops.set_column(at, tops.schema.field(at), pa.array(previews, pa.string()))


def said_by(texts: pa.Table, kind: str) -> dict[int, list[Passage]]:
    """What each training row, or the shown rows of each query together, says; none of those that are not known."""
    found: dict[int, list[Passage]] = {}
    for number, text in _known(texts, kind):
        found.setdefault(number, []).extend(from_json(text))
    return found


def _known(texts: pa.Table, kind: str) -> Iterator[tuple[int, str]]:
    there = texts.filter(pc.and_(pc.equal(texts["kind"], kind), pc.is_valid(texts["text"])))
    return zip(there["number"].to_pylist(), there["text"].to_pylist(), strict=True)


def _joined(passages: Iterable[Passage]) -> str:
    return "\n".join(passage.text for passage in passages)
