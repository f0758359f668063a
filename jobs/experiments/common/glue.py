"""Rows of GLUE's tasks: which columns they have; a sample of them, with labels that are flipped on purpose.

The rows are Parquet files with the columns of the GLUE benchmark: TASK/train*.parquet and TASK/validation*.parquet in a
folder, or on a hub (hf://datasets/nyu-mll/glue).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datainf_ray.common.errors import RequestError

#: By task, the columns of its texts; `label` is that of the class in all of them.
COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
}


def roles(task: str) -> dict[str, str]:
    """`train.columns` of the configuration for a task's rows."""
    names = ("text", "text_pair")
    return dict(zip(names, COLUMNS[task], strict=False)) | {"label": "label"}


def sample(url: str, rows: int, seed: int) -> pa.Table:
    """So many random rows of Parquet files, all classes as often (as far as there are as many), in random order.

    `url` may have wildcards, which must match one file at least.
    """
    files = fsspec.open_files(url, "rb")
    if not files:
        raise RequestError("data", url, "there is no such file")
    with files as opened:
        table = pa.concat_tables([pq.read_table(file) for file in opened])
    draw = np.random.default_rng(seed)
    labels = table["label"].to_numpy()
    classes = sorted(set(labels[labels >= 0].tolist()))
    chosen: list[int] = []
    for number, one in enumerate(classes):
        there = draw.permutation(np.flatnonzero(labels == one))
        chosen += there[: rows // len(classes) + (number < rows % len(classes))].tolist()
    return table.take(draw.permutation(chosen))


def flip(table: pa.Table, share: float, seed: int) -> pa.Table:
    """The table with another label in so large a share of its rows, and with the columns `true_label` and `flipped`."""
    draw = np.random.default_rng((seed, 1))
    labels = table["label"].to_numpy()
    classes = np.unique(labels)
    which = np.zeros(len(labels), dtype=bool)
    which[draw.permutation(len(labels))[: round(share * len(labels))]] = True
    steps = draw.integers(1, len(classes), len(labels))
    others = classes[(np.searchsorted(classes, labels) + steps) % len(classes)]
    column = table.schema.get_field_index("label")
    flipped = table.set_column(column, "label", pa.array(np.where(which, others, labels)))
    return flipped.append_column("true_label", pa.array(labels)).append_column("flipped", pa.array(which))


def write(table: pa.Table, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def classifier(source: str, classes: int, seed: int, folder: Path) -> str:
    """The model in `source` with an untrained head, saved; as it is there already, if it is."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from datainf_ray.model.quiet import quiet

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        torch.manual_seed(seed)
        with quiet():
            model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=classes)
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
            model.save_pretrained(folder)
    return str(folder)


def source_of(name: str) -> str:
    """A model's folder or name; "all-MiniLM-L6-v2" is the one of the demo's package, which needs no network."""
    if name != "all-MiniLM-L6-v2":
        return name
    from datainf_ray.demo.train import model_folder

    return str(model_folder())


def request(task: str, base: str, adapter: str | None, train: str, queries: str, folder: Path) -> dict[str, Any]:
    """A configuration for `datainf run`: the influence of `train` on the mean of `queries`."""
    rows: dict[str, Any] = {"columns": roles(task), "max_length": 128}
    return {
        "model": {"base": base, "adapter": adapter, "task": "sequence-classification"},
        "train": {"path": train, **rows},
        "queries": {"path": queries, "group": "all", **rows},
        "output": str(folder / "run"),
    }


def prepared(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The rows and the model of a cell, in its folder, and the `request` that they make.

    `values` has `data`, where the tasks' folders are; `task`, `rows`, `validation_rows`;
    `noise`, the share of labels that are flipped in the training rows; `model`, and `seed`.
    """
    task, seed = values["task"], values["seed"]
    rows = sample(f"{values['data']}/{task}/train*.parquet", values["rows"], seed)
    rows = flip(rows, values["noise"], seed)
    held_out = sample(f"{values['data']}/{task}/validation*.parquet", values["validation_rows"], seed)
    train, queries = write(rows, folder / "train.parquet"), write(held_out, folder / "queries.parquet")
    classes = len(set(rows["true_label"].to_pylist()))
    base = classifier(source_of(values["model"]), classes, seed, folder / "base")
    return request(task, base, None, train, queries, folder)
