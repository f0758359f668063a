"""What the commands print for people. rich is imported where it is needed: `datainf --help` should not wait for it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from datainf_ray.common.words import LENGTH, counted, escaped, printable, spelled, visible

if TYPE_CHECKING:
    from datainf_ray.request.seen import SeenRows
    from datainf_ray.runs.token_rows import TokenRows
    from datainf_ray.session.checkup import Finding


class Format(str, Enum):
    table = "table"
    json = "json"
    csv = "csv"


_PREVIEW = 300  # characters of a row's text, as many as are kept


def show_findings(findings: list[Finding]) -> None:
    """What `datainf check` has found, a line each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    marks = {0: ("✓", "bold green"), None: ("–", "dim")}
    for finding in findings:
        mark, style = marks.get(finding.status, ("✗", "bold red"))
        table.add_row(Text(mark, style=style), Text(finding.name, style="bold"), Text(escaped(finding.detail)))
    Console().print(table)


def show_rows(rows: SeenRows) -> None:
    """Rows as the model sees them, in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    coloured = console.is_terminal and not console.no_color
    for row in rows:
        console.print(Text(row.heading, style="bold"), soft_wrap=True)
        if coloured:
            console.print(
                Text.assemble(*((text, "green on grey15" if target else "") for text, target in row.pieces()))
            )
        else:
            console.out(str(row).partition("\n")[2], highlight=False)
        console.print()


def show_tokens(rows: TokenRows) -> None:
    """Rows token by token: shaded on a terminal in colour, else with their strongest tokens."""
    from rich.color import Color
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    from datainf_ray.runs.report.shading import merged, opacities, over

    console = Console(highlight=False)
    for row in rows:
        if not console.is_terminal or console.no_color:
            console.out(f"{row}\n", highlight=False)
            continue
        parts = [*merged(row.tokens, row.shares)]
        console.print(Text(row.heading, style="bold"), soft_wrap=True)
        line = Text()
        for (token, share), opacity in zip(parts, opacities([share for _, share in parts]), strict=True):
            ground = Color.from_rgb(*over(share or 0.0, opacity))
            line.append(visible(token), Style(color="white", bgcolor=ground) if opacity else None)
        console.print(line, "")


def show_top(rows: list[dict[str, Any]], queries: list[dict[str, Any]], harmful: bool) -> None:
    """The most helpful or most harmful rows of a query; `queries` are those of queries.parquet."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def printed(text: str, length: int = LENGTH) -> Text:
        return Text(printable(text, length))

    console = Console()
    if not rows:
        console.print(f"no row was {'harmful' if harmful else 'helpful'} to this query")
        return
    effect = (
        "harmful: more weight on it raises the query's loss"
        if harmful
        else ("helpful: more weight on it lowers the query's loss")
    )
    number = rows[0]["query"]
    if number is None:
        console.print(Text(f"all {counted(len(queries), 'query', 'queries')}: the mean of the influences, in RMS"))
    else:
        query = queries[number]
        console.print(Text(f"query {number}: {printable(query['id'])}  {printable(query['preview'] or '', _PREVIEW)}"))
    if "text" in rows[0]:
        _show_texts(rows, effect)
        return
    table = Table(title=f"{effect}", title_justify="left", title_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("influence", justify="right", no_wrap=True)
    table.add_column("id", overflow="fold")
    table.add_column("text", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["rank"]), f"{row['influence']:.4g}", printed(row["id"]), printed(row["preview"] or "", _PREVIEW)
        )
    console.print(table)


def _show_texts(rows: list[dict[str, Any]], effect: str) -> None:
    """Rows with their whole texts, one below the other."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(effect, style="bold"))
    for row in rows:
        heading = f"{row['rank']} · {row['influence']:.4g} · row {row['row']:,} · {printable(row['id'])}"
        console.print(Text(f"\n{heading}", style="bold"), soft_wrap=True)
        console.print(Text(spelled(row["text"])), soft_wrap=True)
