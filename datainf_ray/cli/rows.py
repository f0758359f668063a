"""`datainf top` and `datainf show`: the strongest rows of a run, and one row whole."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer

from datainf_ray.cli.options import Moved, RunPath
from datainf_ray.cli.show import Format, show_tokens, show_top
from datainf_ray.common.words import json_text, visible


class Shown(str, Enum):
    text = "text"
    json = "json"


class Text(str, Enum):
    preview = "preview"
    full = "full"


def add_rows(app: typer.Typer, terminable: Any, overrides: Any) -> None:
    """Add the commands. `terminable` is the context that commands run in, `overrides` reads what --set was given."""

    @app.command()
    def top(
        run: RunPath,
        query: Annotated[str, typer.Option(help="The query's number or id; all: all queries together.")] = "0",
        k: Annotated[int, typer.Option("-k", min=1, help="How many rows.")] = 10,
        harmful: Annotated[bool, typer.Option("--harmful", help="The rows that raise the query's loss.")] = False,
        text: Annotated[
            Text, typer.Option(help="preview, or full: the rows' whole texts, from the corpus.")
        ] = Text.preview,
        output_format: Annotated[Format, typer.Option("--format", help="How they are written.")] = Format.table,
        tokens: Annotated[bool, typer.Option("--tokens", help="Each of them token by token (results.tokens).")] = False,
        assignments: Moved = [],  # noqa: B006
    ) -> None:
        """The rows that helped a query most, or with --harmful those that harmed it."""
        from datainf_ray.curate.top import top as strongest
        from datainf_ray.runs.results import open_run

        if tokens:
            from datainf_ray.runs.token_rows import top_rows

            by_token = top_rows(open_run(run), query, harmful, k)
            if output_format is Format.table:
                show_tokens(by_token)
            else:
                typer.echo(json_text([asdict(row) for row in by_token], indent=2))
            return
        with terminable():
            table = strongest(run, query, k, harmful, text.value, **overrides(assignments))
        rows = table.to_pylist()
        if output_format is Format.json:
            typer.echo(json_text(rows, indent=2))
        elif output_format is Format.csv:
            written = io.StringIO()
            writer = csv.DictWriter(written, table.column_names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            typer.echo(visible(written.getvalue()) if sys.stdout.isatty() else written.getvalue(), nl=False)
        else:
            show_top(rows, open_run(run).queries().to_pylist(), harmful)

    @app.command()
    def show(
        run: RunPath,
        row: Annotated[str, typer.Argument(metavar="ROW", help="The row's id, or its number from 0.")],
        neighbours: Annotated[
            bool, typer.Option("--neighbours/--no-neighbours", help="Look for rows of nearly the same text.")
        ] = True,
        output_format: Annotated[
            Shown, typer.Option("--format", help="How it is written: as text or as JSON.")
        ] = Shown.text,
        assignments: Moved = [],  # noqa: B006
    ) -> None:
        """One training row, whole: its text, its loss, its influence on every query, and rows that are nearly alike."""
        from datainf_ray.curate.shown import show as look

        with terminable():
            found = look(run, row, neighbours, **overrides(assignments))
        typer.echo(json_text(found.as_dict(), indent=1) if output_format is Shown.json else str(found))
