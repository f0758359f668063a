"""A run's rows token by token: what `Run.tokens` gives."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import counted, escaped
from datainf_ray.runs.files import table_of, telling_damage
from datainf_ray.runs.report.shading import merged, shaded
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.top import DIRECTIONS, QUERY

_STYLE = "white-space:pre-wrap;font-family:monospace;margin:.3em 0 1em"
_MOST = 12  # tokens that `str` names


@dataclass(frozen=True)
class TokenRow:
    """What each token of a row contributes to its influence on a query; the columns of tokens.parquet."""

    query: int
    direction: str  #: helpful, harmful, or query: a row of the query itself
    rank: int | None
    row: int
    id: str
    status: str
    detail: str
    influence: float | None
    tokens: list[str]
    shares: list[float | None]  #: null where a token is no target; they add up to `influence`

    @property
    def heading(self) -> str:
        """What is to be said of it, in a line."""
        said = [f"query {self.query}", f"row {self.row:,}", escaped(self.id, 80)]
        if self.direction == QUERY:
            said[:2] = [f"query {self.query} itself, row {self.row:,}"]
        else:
            said.append(f"{self.direction}, rank {self.rank}")
        if self.status != OK:
            return " · ".join([*said, f"{self.status}: {escaped(self.detail)}" if self.detail else self.status])
        assert self.influence is not None
        targets = sum(share is not None for share in self.shares)
        what = "v·r of" if self.direction == QUERY else "influence"
        return " · ".join([*said, f"{what} {self.influence:+.3g} from {counted(targets, 'target')}"])

    def strongest(self) -> list[tuple[str, float]]:
        """The tokens with the largest shares, either way, the largest first."""
        known = [(token, share) for token, share in merged(self.tokens, self.shares) if share is not None]
        return sorted(known, key=lambda one: -abs(one[1]))

    def __str__(self) -> str:
        lines = [f"{share:+.3e}  {escaped(token)!r}" for token, share in self.strongest()[:_MOST]]
        return "\n".join([self.heading, *lines])

    def _repr_html_(self) -> str:
        text = shaded(self.tokens, self.shares)
        return f'<div><b>{html.escape(self.heading)}</b><div style="{_STYLE}">{text}</div></div>'


class TokenRows(tuple[TokenRow, ...]):
    """Rows token by token, for a program and for a notebook's cell."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return "".join(row._repr_html_() for row in self)


def has_tokens(run: Run) -> bool:
    """Whether a run has shares of tokens (`results.tokens`)."""
    return bool(run.config["results"].get("tokens"))


def token_table(run: Run) -> pa.Table:
    """The whole of tokens.parquet of a run that is done. Raises `RequestError` where it has none."""
    if not has_tokens(run):
        raise RequestError("run", run.url, "has no shares of tokens", "run it with results.tokens: true")
    run.require_done()
    with telling_damage():
        return table_of(run.directory, run.record, "tokens.parquet")


def token_rows(run: Run, query: int, row: int | str | None) -> TokenRows:
    """The rows of tokens.parquet for a query: one row by number or id, or those of the query itself.

    Raises `RequestError` where the run has none, or not this row.
    """
    table = token_table(run)
    table = table.filter(pc.equal(table["query"], query))
    own = pc.equal(table["direction"], QUERY)
    if row is None:
        return _rows(table.filter(own))
    listed = table.filter(pc.invert(own))
    found = listed.filter(pc.equal(listed["id" if isinstance(row, str) else "row"], row))
    if not len(found) and isinstance(row, str) and row.isdecimal():
        found = listed.filter(pc.equal(listed["row"], int(row)))
    if not len(found):
        problem = f"is not among the {counted(len(listed), 'row')} of query {query} that were looked at token by token"
        raise RequestError("row", row, problem, "name one of the first in top()")
    return _rows(found)


def top_rows(run: Run, query: int | str, harmful: bool, k: int) -> TokenRows:
    """The rows of a query itself, and the first `k` of a direction that were looked at token by token."""
    table = token_table(run)
    table = table.filter(pc.equal(table["query"], run.query_number(query)))
    asked = pc.and_(pc.equal(table["direction"], DIRECTIONS[int(harmful)]), pc.less_equal(table["rank"], k))
    return _rows(table.filter(pc.or_(pc.equal(table["direction"], QUERY), pc.fill_null(asked, False))))


def _rows(table: pa.Table) -> TokenRows:
    lines = [{**line, "tokens": line["tokens"] or []} for line in table.to_pylist()]
    return TokenRows(TokenRow(**{**line, "shares": line["shares"] or [None] * len(line["tokens"])}) for line in lines)
