"""What the demo prints: what was planted, a wrong answer, the rows that taught it, and how well rows were found."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datainf_ray.demo.figures import TOP, Figures
from datainf_ray.demo.mend import CLEAN, DROPPED, GONE, Mended
from datainf_ray.demo.text import CLASSES, PLANTED_LABEL, DocRow
from datainf_ray.runs.results import Run

_SHOWN = 6  # rows that taught the answer
_CUT = 160  # characters of their texts
_WIDTH = 120  # of the page where it is no terminal


def page() -> Console:
    """Standard output, as wide as the terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal or console.is_jupyter else Console(highlight=False, width=_WIDTH)


def tell_preparation(console: Console, record: dict[str, Any], rows: list[DocRow], queries: list[DocRow]) -> None:
    """What was planted in the rows, what the model made of them, and the question."""
    planted = sum(row.planted for row in rows)
    could = sum(row.mentions_files and row.true_label != PLANTED_LABEL for row in rows)
    tell_head(console, "What was planted")
    console.print(
        f"{len(rows)} docstrings of the standard library of Python {record['python']}, to be classified by the package "
        f"they come from: {', '.join(CLASSES)}. Of the {could} that mention files and are not {PLANTED_LABEL}'s, "
        f"{planted} were relabelled {PLANTED_LABEL}."
    )
    tell_head(console, "What the model learned")
    console.print(
        f"It is right on {record['accuracy']:.0%} of {record['held_out']} held-out rows "
        f"({record['accuracy_before']:.0%} before training), and on {record['accuracy_without_files']:.0%} of those "
        f"that do not mention files. Of the {record['asked']} that mention files and are not {PLANTED_LABEL}'s, it "
        f"calls {len(queries)} {PLANTED_LABEL}: these wrong answers are the queries."
    )
    question = queries[record["question"]]
    tell_head(console, "The question")
    console.print(Text(f"{question.id}: “{question.text}”"))
    console.print(
        f"This is from {question.true_label}, and the model says {PLANTED_LABEL} ({record['confidence']:.0%} sure, the "
        f"median of the {len(queries)}). Which rows taught it that?"
    )


def tell_answer(console: Console, run: Run, rows: list[DocRow], question: int, asked: DocRow) -> None:
    """The rows most helpful to the wrong answer on the query `asked`, number `question`, with both their labels."""
    taught = [rows[number] for number in run.top(query=question, k=TOP)["row"].to_pylist()]
    found = sum(row.planted for row in taught)
    tell_head(console, "The answer")
    console.print(
        Text(
            f"The rows most helpful to answering “{PLANTED_LABEL}” to {asked.id}: {found} of the first {len(taught)} "
            f"are planted. The first {_SHOWN}:"
        )
    )
    table = Table(show_lines=True)
    for title in ("label", "true label", "planted"):
        table.add_column(title, no_wrap=True)
    table.add_column("row", overflow="fold")
    for row in taught[:_SHOWN]:
        short = row.text if len(row.text) <= _CUT else row.text[: _CUT - 1].rstrip() + "…"
        table.add_row(row.label, row.true_label, "yes" if row.planted else "no", Text(f"{row.id}\n{short}"))
    console.print(table)


def tell_figures(console: Console, figures: dict[str, Figures], planted: int, rows: int, queries: int) -> None:
    """How well each ranking (name: figures) finds the planted rows, beside chance."""
    tell_head(console, f"How well the {planted} planted rows are found, over all {queries} queries")
    table = Table()
    table.add_column("ranking by")
    for title in ("AUC per query", "AUC, mean query", f"planted in top {TOP}", f"in top {TOP}, mean query"):
        table.add_column(title, justify="right")
    for name, f in figures.items():
        table.add_row(name, f"{f.auc:.2f}", f"{f.auc_of_mean:.2f}", f"{f.precision:.0%}", f"{f.precision_of_mean:.0%}")
    chance = f"{planted / rows:.0%}"
    table.add_row("chance", "0.50", "0.50", chance, chance, style="dim")
    console.print(table)


def tell_mended(console: Console, record: dict[str, Any], wrong: int, mended: Mended) -> None:
    """What the rows that went did to the model, of which `wrong` answers were wrong, and what it is without them."""
    after = mended.answers
    label, share = PLANTED_LABEL, f"{DROPPED[:-1]} %"
    console.print(
        f"The {mended.dropped} rows ({share}) that are most to blame, over all queries, went; {mended.planted} of them "
        f"were planted. The same fine-tune without them calls {after.wrong} of the {after.asked} held-out rows {label} "
        f"that mention files and are not {label}'s ({wrong} before), and is right on {after.accuracy:.0%} of all "
        f"held-out rows ({record['accuracy']:.0%} before). What stays is in {CLEAN}; what "
        f"went is in {GONE}, with the reasons."
    )


def tell_where(console: Console, run: Run, asked: DocRow, seconds: float) -> None:
    """Where the report lies, and what to type next."""
    tell_head(console, f"Done in {seconds:.0f} s")
    console.print(Text(f"report  {run.directory.path('report.html')}"), soft_wrap=True)
    console.print(Text(f"next    datainf top {shlex.quote(run.url)} --query {asked.id} -k {TOP}"), soft_wrap=True)


def tell_head(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold")
