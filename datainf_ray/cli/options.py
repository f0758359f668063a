"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file: a path or any fsspec URL.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The run directory: a path or fsspec URL.")]
#: Keys of a configuration.
Assignments = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, as in --set cluster.max_workers=2.")
]
#: The same of a finished run's, whose rows are read once more.
Moved = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key: --set train.path=… where the corpus was moved."),
]
Progress = Annotated[
    str, typer.Option(metavar="HOW", help="How progress is shown: auto, bars, lines, json (on stdout) or none.")
]
