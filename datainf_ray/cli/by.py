"""`datainf by`: influence summed by a column of the corpus."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datainf_ray.cli.options import Moved, RunPath
from datainf_ray.cli.show import Format
from datainf_ray.common.words import counted, json_text, percent, printable, visible

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 20  # values at either end that a person is shown


def add_by(app: typer.Typer, terminable: Any, overrides: Any) -> None:
    """Add the command. `terminable` is the context that commands run in, `overrides` reads what --set was given."""

    @app.command()
    def by(
        run: RunPath,
        column: Annotated[
            str, typer.Option(metavar="COLUMN", help="A column of the training rows, one within it (a.b), or file.")
        ],
        query: Annotated[
            str | None,
            typer.Option(help="A query's number or id, or all: all together. Default: each, and all; a table has all."),
        ] = None,
        output_format: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.table,
        to: Annotated[
            str | None, typer.Option(metavar="PATH", help="Write all of it to a new Parquet file: a path or URL.")
        ] = None,
        assignments: Moved = [],  # noqa: B006
    ) -> None:
        """Influence summed and averaged by a column of the corpus: which file, source, label or annotator did it?"""
        from datainf_ray.curate.by import by as influence_by
        from datainf_ray.curate.by import save

        changed = overrides(assignments)
        person = output_format is Format.table and to is None
        with terminable():
            table = influence_by(run, column, "all" if query is None and person else query, **changed)
            if to is not None:
                save(table, to, changed)
        if to is not None:
            typer.echo(f"{counted(len(table), 'row')}: {printable(to)}")
        elif output_format is Format.table:
            show_by(table, column)
        elif output_format is Format.json:
            typer.echo(json_text(table.to_pylist(), indent=1))
        else:
            typer.echo(_csv(table), nl=False)


def _csv(table: pa.Table) -> str:
    """As programs read it; a terminal gets no unseen character."""
    import pyarrow.csv

    found = io.BytesIO()
    pyarrow.csv.write_csv(table, found)
    text = found.getvalue().decode()
    return visible(text) if sys.stdout.isatty() else text


def show_by(table: pa.Table, column: str) -> None:
    """The values of a column, the most harmful first, for a person; of many the two ends."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first = table.slice(0, 1).to_pylist()
    together = not first or first[0]["query"] is None
    told = "all queries, in RMS" if together else f"query {first[0]['query']}: {printable(first[0]['id'])}"
    shown = Table()
    shown.add_column(Text(printable(column, 40)), overflow="fold", min_width=12)
    for name in ("scored", "sum", "of its side", "mean ± 95 % (normal)"):
        shown.add_column(name, justify="right", no_wrap=True)
    left = len(table) - 2 * _SHOWN
    for at, row in enumerate(table.to_pylist()):
        if left > 0 and at == _SHOWN:
            shown.add_row(Text(f"… {left:,} more: --format csv and --to have all"))
        if left > 0 and _SHOWN <= at < _SHOWN + left:
            continue
        value = "(null)" if row["value"] is None else printable(row["value"], 100)
        mean = "–" if row["mean"] is None else f"{row['mean']:+.3e}"
        within = "" if row["low"] is None else f" ± {row['high'] - row['mean']:.1e}"
        shown.add_row(Text(value), f"{row['scored']:,}", f"{row['sum']:+.3e}", percent(row["share"]), mean + within)
    console = Console()
    console.print(Text(f"influence on {told}, by {printable(column, 60)}; positive: harmful"))
    console.print(shown)
