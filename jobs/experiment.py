"""The paper's experiments, made again: what the scores are worth, measured.

    python jobs/experiment.py NAME [--config FILE] [--output DIRECTORY] [--set KEY=VALUE ...]

approximation   how well each method goes with exact influence, by rank
influential     how well each method finds the rows of the class of a query, by epoch
mislabelled     how well each method finds rows with a wrong label, by epoch
retrain         whether taking rows out does what the scores say
shortcuts       what cheaper ways to the influences cost
text-to-image   how well each method finds the pictures of the style of a query, and foresees fine-tunes on halves

Each is a folder in jobs/experiments (a hyphen is _ there): its config.yaml says what is done, its README shows what
came of it. It runs in Ray's tasks, on this machine or on the cluster that RAY_ADDRESS names. What is done is kept in
DIRECTORY (any fsspec URL), and the same command goes on where it was cut off; results.parquet, table.md and figure.svg
are written there at the end. Needs `pip install -e ".[experiments]"`; text-to-image also the extra `diffusion`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datainf_ray.common.errors import RequestError
from datainf_ray.common.plain_yaml import read_yaml
from datainf_ray.config import parse_assignment
from datainf_ray.runs.directory import RunDirectory

EXPERIMENTS = ("approximation", "influential", "mislabelled", "retrain", "shortcuts", "text-to-image")
_HERE = Path(__file__).parent / "experiments"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--config", help="default: the config.yaml in the experiment's folder")
    parser.add_argument("--output", help="default: experiments/NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args(arguments)
    folder = asked.name.replace("-", "_")
    config = _config(asked.config or str(_HERE / folder / "config.yaml"), asked.set)
    directory = RunDirectory(asked.output or f"experiments/{asked.name}")
    program = importlib.import_module(f"experiments.{folder}.program")
    for name, value in program.run(config, directory).items():
        directory.write(name, _data(value))
        print(directory.path(name), flush=True)


def _config(path: str, assignments: list[str]) -> dict[str, Any]:
    config = dict(read_yaml(Path(path).read_text(encoding="utf-8")))
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        if key not in config:
            raise RequestError(f"--set {key}", value, "unknown key", f"known are {', '.join(config)}")
        config[key] = value
    return config


def _data(value: Any) -> bytes:
    if isinstance(value, pa.Table):
        sink = io.BytesIO()
        pq.write_table(value, sink)
        return sink.getvalue()
    return value if isinstance(value, bytes) else str(value).encode()


if __name__ == "__main__":
    try:
        main()
    except RequestError as error:
        sys.exit(f"error: {error}")
