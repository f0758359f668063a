"""Which pictures the report shows: as many as it has room for, those that are read first before all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from datainf_ray.runs.pictures import address, pictures_by
from datainf_ray.runs.texts import QUERY, ROW

_BESIDE = 512  # bytes of what stands around an address, with a row's id


@dataclass
class Pictured:
    """Pictures as addresses for <img>, each of a place on the page."""

    queries: dict[int, list[str]] = field(default_factory=dict)  #: by the query's number
    rows: dict[tuple[int, int], str] = field(default_factory=dict)  #: by query and row
    over_all: dict[int, str] = field(default_factory=dict)  #: by row: where it stands for several queries

    def __bool__(self) -> bool:
        return bool(self.queries or self.rows or self.over_all)


def pictured(table: pa.Table, queries: Sequence[int], listed: pa.Table, few: int, room: int) -> Pictured:
    """Of pictures.parquet what fits into `room` bytes of the page, as often as a picture stands in it.

    First the `queries`; then the first `few` rows of each in `listed`, a part of top.parquet; once more the rows that
    are among the first of several, for where they stand together; then the other rows, by rank.
    """
    made = Pictured()
    if not len(table):
        return made
    known = {kind: pictures_by(table, kind) for kind in (QUERY, ROW)}
    lines = sorted(zip(*(listed[name].to_pylist() for name in ("query", "rank", "row")), strict=True))
    first = [(query, row) for query, rank, row in lines if rank <= few]
    rest = [(query, row) for rank, query, row in sorted((r, q, n) for q, r, n in lines if r > few)]
    seen = [row for _, row in first]
    several = [row for row in dict.fromkeys(seen) if seen.count(row) > 1]

    def fitting(pictures: Sequence[bytes]) -> list[str]:
        nonlocal room
        found = []
        for one in map(address, pictures):
            if len(one) + _BESIDE <= room:
                room -= len(one) + _BESIDE
                found.append(one)
        return found

    def add(places: Iterable[tuple[int, int]]) -> None:
        for query, row in places:
            if found := fitting(known[ROW].get(row, ())):
                made.rows[query, row] = found[0]

    for query in queries:
        if found := fitting(known[QUERY].get(query, ())):
            made.queries[query] = found
    add(first)
    for row in several:
        if found := fitting(known[ROW].get(row, ())):
            made.over_all[row] = found[0]
    add(rest)
    return made
