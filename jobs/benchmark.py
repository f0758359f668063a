"""What datainf-ray costs, beside what it could cost at best: one table, all of it measured here and now.

    python jobs/benchmark.py [TABLE ...] [--json FILE] [--repeats N]        all tables, where none is named

sweep        the first sweep over a plain LoRA training step on the same batches
capture      the same for DoRA, fused experts and a saved embedding, with 10 queries
pictures     the same for a UNet with LoRA, each picture at six timesteps
whole        a whole `datainf run` over training on the same batches
closed-form  DataInf on 900 × 100 gradients in memory, over one matrix product and over the paper's loops
peers        the fixed workload in --peers FOLDER: over the limit of DataInf's work, and over bergson's commands;
             skipped without the folder, and without --bergson compared with the limit alone
workers      one worker against two
queue        the driver's time for a chunk, at 10,000 tiny ones
memory       peak memory at n, 4n and 16n rows
gpu          a random Llama of --size 1B or 8B in bfloat16 on one GPU, without Ray
gpu-whole    whole runs with it, over training on the same batches
gpu-right    whole runs on one GPU against a float64 loop, in single and half precision, undisturbed and not

Things that are compared take turns, and a figure is the median of the turns. Aims are the project's own. A machine that
does other things meanwhile gives other figures: its load is in the JSON. Needs `pip install -e ".[test]"`, but for the
gpu table, which wants torch, transformers, peft, pyarrow, pydantic and rich alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.commands import CommandFailedError
from bench.measure import Figure, Options, machine, say
from rich.console import Console
from rich.table import Table

#: The modules of bench/ and the functions in them: imported when they are run, as some machines lack what some need.
TABLES = {
    "sweep": "sweep",
    "capture": "capture",
    "pictures": "pictures",
    "whole": "whole",
    "closed-form": "closed_form",
    "peers": "peers",
    "workers": "workers",
    "queue": "queue",
    "memory": "memory",
    "gpu": "gpu",
    "gpu-whole": "gpu_whole",
    "gpu-right": "gpu_right",
}


def main(arguments: list[str] | None = None) -> list[Figure]:
    """Measure what the command line asks for; the figures, as they are printed and written."""
    asked = _parser().parse_args(arguments)
    names = list(TABLES) if "all" in asked.tables else list(dict.fromkeys(asked.tables))
    scratch = Path(tempfile.mkdtemp(prefix="benchmark-", dir=asked.scratch))
    options = Options(
        scratch=scratch,
        repeats=asked.repeats,
        threads=asked.threads,
        queries=asked.queries,
        small=asked.small,
        size=asked.size,
        peers=asked.peers and asked.peers.resolve(),
        work=asked.work and asked.work.resolve(),
        bergson=asked.bergson and asked.bergson.absolute(),  # resolved, a virtual environment's would be another Python
    )
    before, began = machine(), time.perf_counter()
    figures: list[Figure] = []
    try:
        for name in names:
            if reason := _out_of_reach(name, options):
                say(f"{name}: skipped: {reason}")
                figures.append(Figure(name, "", "skipped", None, note=reason))
                continue
            try:
                table: Callable[[Options], Iterator[Figure]] = getattr(
                    importlib.import_module(f"bench.{TABLES[name]}"), TABLES[name]
                )
                for figure in table(options):
                    figures.append(figure)
                    say(f"  {figure.name}: {_value(figure)} ({figure.note})")
            except CommandFailedError as error:
                say(f"{name}: {error}")
                figures.append(Figure(name, "", "failed", None, note=str(error)))
    finally:
        shutil.rmtree(scratch)
        if figures:
            Console(width=None if sys.stdout.isatty() else 160).print(_table(figures))
            if asked.json:
                asked.json.write_text(json.dumps(_document(figures, before, began, arguments), indent=1) + "\n")
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["all"], choices=[*TABLES, "all"], metavar="TABLE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and every single turn, there")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns that everything takes")
    parser.add_argument("--threads", type=int, help="of sweep, capture, gpu without one (1), closed-form (all)")
    parser.add_argument("--queries", type=int, default=50, help="of sweep and gpu; of capture at most 10")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where floor.py and bergson_peer.py are")
    parser.add_argument("--work", type=Path, metavar="W", help="the peers' files; made there where it has none")
    parser.add_argument("--bergson", type=Path, metavar="PYTHON", help="of an environment that has bergson")
    parser.add_argument("--size", default="1B", choices=["tiny", "1B", "8B"], help="of the gpu table's model")
    parser.add_argument("--small", action="store_true", help="all as small as it can be: says nothing of speed")
    parser.add_argument(
        "--scratch", metavar="FOLDER", help="where files are put for a while; default: with the system's"
    )
    return parser


def _out_of_reach(name: str, options: Options) -> str | None:
    """Why a table cannot be made here; None where it can."""
    if name == "peers" and options.peers is None:
        return "give --peers FOLDER"
    if name.startswith("gpu") and options.size != "tiny":
        import torch

        if not torch.cuda.is_available():
            return "there is no GPU (--size tiny runs on a CPU)"
    return None


def _table(figures: list[Figure]) -> Table:
    table = Table(title="datainf-ray benchmark", title_justify="left", show_lines=False)
    for heading in ("table", "case", "figure"):
        table.add_column(heading, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("aim", no_wrap=True)
    table.add_column("from", overflow="fold")
    last = ("", "")
    for figure in figures:
        if last[0] and figure.table != last[0]:
            table.add_section()
        shown = ["" if (figure.table, figure.case) == last else text for text in (figure.table, figure.case)]
        last = (figure.table, figure.case)
        aim = ""
        if figure.aim:
            aim = f"{figure.aim[0]} {figure.aim[1]:g}" + ("" if figure.met is None else " ✓" if figure.met else " ✗")
        table.add_row(*shown, figure.name, _value(figure), aim, figure.note)
    return table


def _value(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    size = abs(figure.value)
    text = f"{figure.value:,.0f}" if size >= 100 else f"{figure.value:.3g}"
    return f"{text} {figure.unit}".strip()


def _document(
    figures: list[Figure], before: dict[str, Any], began: float, arguments: list[str] | None
) -> dict[str, Any]:
    return {
        "command": ["jobs/benchmark.py", *(sys.argv[1:] if arguments is None else arguments)],
        "machine": before | {"load_after": machine()["load"]},
        "seconds": round(time.perf_counter() - began, 1),
        "figures": [asdict(figure) | {"met": figure.met} for figure in figures],
    }


if __name__ == "__main__":
    sys.exit(any(figure.name == "failed" for figure in main()))
