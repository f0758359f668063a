"""`datainf curate`: its options, which are those of `curate.act.curate`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from datainf_ray.cli.options import Moved
from datainf_ray.common.words import escaped, json_text


class Shape(str, Enum):
    less = "less"
    date_lm = "date-lm"
    llamafactory = "llamafactory"


def add_curate(app: typer.Typer, terminable: Any, overrides: Any) -> None:
    """Add the command. `terminable` is the context that commands run in, `overrides` reads what --set was given."""

    @app.command()
    def curate(
        runs: Annotated[list[str], typer.Argument(metavar="RUN [RUN ...]", help="Finished runs of the same corpus.")],
        to: Annotated[
            str | None,
            typer.Option(metavar="PATH", help="The new file, or folder where the corpus is several files."),
        ] = None,
        because: Annotated[
            str | None,
            typer.Option(
                metavar="helpful|harmful",
                help="Who is to blame. helpful: the queries are mistakes, and these rows taught them. "
                "harmful: the queries are good answers, and these rows spoil them.",
            ),
        ] = None,
        drop: Annotated[
            str | None,
            typer.Option(
                metavar="1%|N|auto",
                help="The share, or number, of rows most to blame goes; auto: those that stand out of chance.",
            ),
        ] = None,
        drop_above: Annotated[
            float | None, typer.Option(metavar="T", help="Rows that are blamed with more than T root mean squares go.")
        ] = None,
        select: Annotated[
            str | None, typer.Option(metavar="N|1%", help="So many of the rows least to blame stay: the most helpful.")
        ] = None,
        per: Annotated[
            str | None,
            typer.Option(
                metavar="COLUMN|query",
                help="With --select: equal numbers for each value of the column; query: queries take turns.",
            ),
        ] = None,
        between: Annotated[
            tuple[str, str] | None, typer.Option(metavar="q30 q70", help="The middle of the order stays.")
        ] = None,
        sample: Annotated[
            str | None, typer.Option(metavar="N|1%", help="So many rows stay, drawn by their weights.")
        ] = None,
        ids: Annotated[list[str], typer.Option(metavar="ID", help="This row goes; may be repeated.")] = [],  # noqa: B006
        weights: Annotated[bool, typer.Option("--weights", help="All rows stay, with weights from 0 to 2.")] = False,
        annotate: Annotated[bool, typer.Option("--annotate", help="All rows stay, and get their scores.")] = False,
        temperature: Annotated[float, typer.Option(help="Of --sample and --weights: the lower the stricter.")] = 1.0,
        seed: Annotated[int, typer.Option(min=0, help="Of --sample.")] = 0,
        across: Annotated[
            str, typer.Option(metavar="mean|max|votes", help="How the influences on all queries become one number.")
        ] = "mean",
        near_duplicates: Annotated[
            bool, typer.Option("--near-duplicates", help="Rows of nearly the same text go with those that go.")
        ] = False,
        without_score: Annotated[
            str | None,
            typer.Option(metavar="keep|drop", help="Rows without a score. Default: keep; drop with --select."),
        ] = None,
        rejected: Annotated[
            str | None, typer.Option(metavar="PATH", help="Where the rows that go are written, each with the reason.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would go.")] = False,
        shape: Annotated[
            Shape | None, typer.Option("--format", help="A folder with what another tool reads beside the rows.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON, for programs.")] = False,
        assignments: Moved = [],  # noqa: B006
    ) -> None:
        """Write the corpus again without its worst rows, or selected, weighted, with scores. The original stays.

        Without a rule it says how many rows stand out of what chance would give, and the command that drops them.
        """
        from datainf_ray.curate.act import curate as act
        from datainf_ray.curate.act import suggested
        from datainf_ray.curate.result import Curated, Suggested

        done: Curated | Suggested
        rules = (drop, drop_above, select, between, sample, ids or None, weights or None, annotate or None)
        others = (
            to,
            rejected,
            per,
            shape,
            without_score,
            near_duplicates or None,
            None if across == "mean" else across,
        )
        with terminable():
            if all(one is None for one in (*rules, *others)):
                done = suggested(*runs, because=because, overrides=overrides(assignments))
            else:
                done = act(
                    *runs, to=to, rejected=rejected, dry_run=dry_run, because=because, across=across, drop=drop,
                    drop_above=drop_above, select=select, per=per, between=between, sample=sample, ids=ids,
                    weights=weights, annotate=annotate, temperature=temperature, seed=seed,
                    near_duplicates=near_duplicates, without_score=without_score,
                    output_format=None if shape is None else shape.value, overrides=overrides(assignments),
                )  # fmt: skip
        if as_json:
            typer.echo(json_text(done.as_dict(), indent=2))
        else:
            typer.echo("\n".join(escaped(line) for line in done.lines()))
