"""The `datainf` command. Status: 0 done; 1 it failed, and says why; 2 the request was wrong; 130 interrupted."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from types import FrameType
from typing import Annotated, Any

import typer

from datainf_ray.cli.by import add_by
from datainf_ray.cli.curate import add_curate
from datainf_ray.cli.options import Assignments, Config, Moved, Progress, RunPath
from datainf_ray.cli.rows import add_rows
from datainf_ray.cli.show import Format, show_findings, show_rows
from datainf_ray.common.errors import RequestError, RunFailedError, StoppedError
from datainf_ray.common.leaving import leaving_by
from datainf_ray.common.words import escaped, visible

app = typer.Typer(
    help="Which training rows did this? Influence of every row of a LoRA fine-tuning corpus.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = "interrupted; run the same command again to go on"


class Side(str, Enum):
    harmful = "harmful"
    helpful = "helpful"
    largest = "largest"


@app.command()
def run(
    config: Config,
    assignments: Assignments = [],  # noqa: B006 - typer reads the default
    progress: Progress = "auto",
    fail_over: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Fail where more rows than that have no score: 0.1% or 0.001."),
    ] = None,
) -> None:
    """The main job. Running it again takes up what was cut off, or says that it is done."""
    from datainf_ray.session.front import attribute

    overrides = _overrides(assignments)
    if fail_over is not None:
        overrides["results.most_bad_rows"] = _share(fail_over, "--fail-over")
    with _terminable():
        attribute(config, progress=progress, **overrides)


@app.command()
def plan(
    config: Config,
    assignments: Assignments = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Start one worker, and time it on a few rows; this does use a GPU.")
    ] = False,
) -> None:
    """What a run would take: rows, tokens, blocks, chunks, sweeps, memory, bytes, time. Touches no GPU."""
    from datainf_ray.planning.forecast import render
    from datainf_ray.session.plan import plan as forecast

    with _terminable():
        expected = forecast(config, calibrate=calibrate, **_overrides(assignments))
    typer.echo(json.dumps(expected.model_dump(), indent=2) if as_json else visible(render(expected)))
    if expected.problem is not None:
        sys.exit(2)


@app.command()
def check(
    config: Config,
    assignments: Assignments = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Before money is spent: try the request, the cluster, its packages, a worker, the storage, and time one chunk."""
    from datainf_ray.session.checkup import check as look

    with _terminable():
        findings = look(config, lambda text: typer.echo(f"{escaped(text)} …", err=True), **_overrides(assignments))
    if as_json:
        typer.echo(json.dumps([{**asdict(finding), "ok": finding.ok} for finding in findings], indent=2))
    else:
        show_findings(findings)
    sys.exit(next((finding.status for finding in findings if not finding.ok), 0))


@app.command()
def tokens(
    config: Config,
    assignments: Assignments = [],  # noqa: B006
    queries: Annotated[
        bool, typer.Option("--queries", help="Rows of the queries, instead of the training rows.")
    ] = False,
    row: Annotated[
        list[int],
        typer.Option("--row", metavar="N", help="A row's number, from 0; may be repeated. Default: the first 3."),
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """What the model sees of a row: its tokens, with those marked that have a loss, and what was cut."""
    from datainf_ray.session.tokens import tokens as look

    with _terminable():
        rows = look(config, queries=queries, rows=row or None, **_overrides(assignments))
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in rows], indent=1, ensure_ascii=False))
    else:
        show_rows(rows)


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Where the demo's model, rows and runs are put.")] = "datainf-demo",
) -> None:
    """The main job on a real model and real text that need no network."""
    from datainf_ray.demo import run_demo

    with _terminable():
        run_demo(output)


@app.command()
def query(
    run: RunPath,
    queries: Annotated[list[str], typer.Option("--queries", metavar="PATH", help="The new queries; may be repeated.")],
    output: Annotated[str, typer.Option(metavar="RUN2", help="The directory of the answers, a run like any other.")],
    assignments: Assignments = [],  # noqa: B006
    progress: Progress = "auto",
) -> None:
    """Answer new queries from the run's gradient index, without a backward pass over the corpus."""
    from datainf_ray.session.front import query as answer

    with _terminable():
        answer(run, queries=queries, output=output, progress=progress, **_overrides(assignments))


@app.command()
def evaluate(
    run: RunPath,
    others: Annotated[
        list[str] | None, typer.Argument(metavar="RUN2", help="Other runs on the same rows, to compare with.")
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN[=VALUE]",
            help="Find the training rows where this column is true, 1 or VALUE: flipped labels.",
        ),
    ] = None,
    same: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Find, for each query, the training rows of its own class.")
    ] = None,
    side: Annotated[
        Side | None,
        typer.Option(
            help="Which influences are looked at first. Default: harmful with --truth, helpful with --same. "
            "The paper's notebooks take a class' AUC by the helpful ones and its recall by the largest of either sign."
        ),
    ] = None,
    k: Annotated[
        list[int],
        typer.Option("-k", min=1, help="Take recall@k there; may be repeated. Default: all that is to be found."),
    ] = [],  # noqa: B006
    resamples: Annotated[int, typer.Option(min=0, help="Of the 95 % bootstrap intervals; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    bm25: Annotated[
        bool, typer.Option("--bm25/--no-bm25", help="Compare with BM25, which reads all texts into memory.")
    ] = True,
    figure: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw it, too: a path or fsspec URL in .svg, .png or .pdf.")
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="How the figures are written.")] = Format.table,
    assignments: Moved = [],  # noqa: B006
) -> None:
    """How well the scores find rows of which a column knows: AUC, average precision, MRR, recall; with intervals."""
    from datainf_ray.evaluation.compare import evaluate as compare
    from datainf_ray.evaluation.draw import save, suffix_of

    suffix = None if figure is None else suffix_of(figure)
    overrides = _overrides(assignments)
    with _terminable():
        found = compare(
            run, *(others or []), truth=truth, same=same, side=None if side is None else side.value, k=k,
            resamples=resamples, seed=seed, bm25=bm25, **overrides,
        )  # fmt: skip
        if figure is not None and suffix is not None:
            save(found.draw(), figure, suffix, overrides)
    if output_format is Format.table:
        found.show()
    else:
        typer.echo(found.json() if output_format is Format.json else found.csv(), nl=output_format is Format.json)


@app.command()
def combine(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Finished runs, in the training's order.")],
    output: Annotated[str, typer.Option(metavar="RUN2", help="The directory of the sum, a run like any other.")],
    weights: Annotated[
        str | None, typer.Option(metavar="W1,W2,...", help="A positive weight for each run; default 1 for each.")
    ] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Add runs of different methods all the same.")] = False,
    by_id: Annotated[bool, typer.Option("--by-id", help="Find queries by id: those that all runs have.")] = False,
    progress: Progress = "auto",
) -> None:
    """Add the influences of several checkpoints' runs, weighted, as TracIn and LESS do."""
    from datainf_ray.session.combine import combine as add

    numbers = None if weights is None else [_number(text, "--weights") for text in weights.split(",")]
    with _terminable():
        add(runs, output, weights=numbers, mixed=mixed, by_id=by_id, progress=progress)


@app.command()
def report(run: RunPath) -> None:
    """Write report.html into the run directory, and say where it is."""
    from datainf_ray.runs.report.page import write_report
    from datainf_ray.runs.results import open_run

    typer.echo(write_report(open_run(run)))


def main() -> None:
    """The command's entry point: what went wrong is one line on standard error, and the exit status."""
    try:
        app(standalone_mode=True)
    except RequestError as error:
        _leave(f"error: {error}", 2)
    except StoppedError:
        _leave(_INTERRUPTED, 130)
    except RunFailedError as error:
        _leave(f"failed: {escaped(str(error))}", 1)
    except BrokenPipeError:  # the reader of our output has left, as `datainf top | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        gc.freeze()  # nothing is left to collect, and looking through all modules at the end takes a second


def _leave(text: str, status: int) -> None:
    typer.echo(text, err=True)
    sys.exit(status)


def _overrides(assignments: list[str]) -> dict[str, Any]:
    from datainf_ray.config import parse_assignment

    return dict(parse_assignment(text) for text in assignments)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(option, text, "is no number", "an example is --weights 2e-4,1e-4") from None


def _share(text: str, option: str) -> float:
    """`0.1%` or `0.001` as 0.001. Raises `RequestError` for what is neither, or not from 0 to 1."""
    number, sign, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if sign else 1)
    except ValueError:
        share = -1.0
    if rest or not 0 <= share <= 1:
        raise RequestError(option, text, "is no share of the rows", "write a percentage, 0.1%, or a number from 0 to 1")
    return share


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, which `ray job stop` and batch systems send, end the run as Ctrl-C does."""

    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def give_up(line: str) -> None:
        """In a thread of its own, whatever the others are at: nothing may be waited for."""
        line, status = (_INTERRUPTED, 130) if interrupted else (line, 1)  # whoever ends us has ended Ray, too
        os.write(2, f"{line}\n".encode())
        os._exit(status)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with leaving_by(give_up):
            yield
    except KeyboardInterrupt:  # here, because typer has an answer of its own
        typer.echo(_INTERRUPTED, err=True)
        sys.stdout.flush()
        os._exit(130)  # at once, whatever else is still at work: `ray job stop` kills after 3 seconds
    finally:
        signal.signal(signal.SIGTERM, before)


add_rows(app, _terminable, _overrides)
add_curate(app, _terminable, _overrides)
add_by(app, _terminable, _overrides)
