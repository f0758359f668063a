"""Files that other tools look for beside, or in place of, the rows: LESS, DATE-LM and LLaMA-Factory."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import meant
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.templates import is_template
from datainf_ray.curate.rules import Decided, Rule
from datainf_ray.curate.target import Target

Format = Literal["less", "date-lm", "llamafactory"]
FORMATS: tuple[Format, ...] = get_args(Format)
_LOOKED = 100  # rows that show how a column's talks are written


def format_of(name: str | None, rule: Rule) -> Format | None:
    """The format that is asked for. Raises `RequestError` where there is none of that name, or not for the rule."""
    if name is None:
        return None
    if name not in FORMATS:
        raise RequestError("--format", name, "no such format", meant(name, FORMATS))
    if name == "date-lm" and rule.name != "annotate":
        raise RequestError("--format", name, "has a score for every row, and no rows", "use it with --annotate")
    return name


def finish(kind: Format, target: Target, corpus: Corpus, decided: Decided) -> None:
    """Write what the format has besides the rows.

    less: sorted.csv, as LESS' write_selected_data makes it: file, index in it and score, the best first. date-lm:
    scores.json, a list with a score for each row, the more the more to blame, which its evaluation reads. llamafactory:
    dataset_info.json, with an entry for each file.
    """
    if kind == "date-lm":
        values = np.concatenate([block for _, block in decided.score.blocks()])
        lowest = np.nanmin(values)
        with target.other("scores.json") as out:
            out.write(json.dumps(np.where(np.isnan(values), lowest, values).tolist()).encode() + b"\n")
    elif kind == "less":
        _write_sorted(target, corpus, decided)
    else:
        entries = _entries(corpus, target)
        with target.other("dataset_info.json") as out:
            out.write(json.dumps(entries, indent=2, ensure_ascii=False).encode() + b"\n")


def _write_sorted(target: Target, corpus: Corpus, decided: Decided) -> None:
    values = np.concatenate([block for _, block in decided.score.blocks()])
    starts = np.concatenate([[0], np.cumsum([file.rows for file in corpus.files])])
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
    with target.other("sorted.csv") as out:
        out.write(b"file name, index, score\n")
        for row in order.tolist():
            if not np.isnan(values[row]):
                file = int(np.searchsorted(starts, row, side="right")) - 1
                name = PurePosixPath(corpus.files[file].name).name.partition(".")[0]
                out.write(f"{name}, {row - starts[file]}, {round(-values[row], 6)}\n".encode())


def _entries(corpus: Corpus, target: Target) -> dict[str, Any]:
    """dataset_info.json. Raises `RequestError` where LLaMA-Factory cannot be told of the columns."""
    columns = corpus.columns
    for role, column in columns.items():
        if is_template(column) or any(column not in file.columns for file in corpus.files if file.rows):
            raise RequestError("--format", "llamafactory", f"{role} is made of {column}, and it wants a column")
    if "messages" in columns:
        entry: dict[str, Any] = {"formatting": "sharegpt", **_talks(corpus)}
    elif "prompt" in columns and "completion" in columns:
        entry = {"columns": {"prompt": columns["prompt"], "response": columns["completion"]}}
    elif "text" in columns and "label" not in columns:
        entry = {"columns": {"prompt": columns["text"]}}
    else:
        raise RequestError("--format", "llamafactory", f"has no rows of {', '.join(columns)}")
    found = {}
    for file in corpus.files:
        if file.compression is not None or (file.format == "csv" and file.delimiter == "\t"):
            raise RequestError("--format", "llamafactory", f"cannot read {file.name}", "unpack the corpus first")
        name = target.named(file)
        found[name.replace("/", "_").rpartition(".")[0]] = {"file_name": name, **entry}
    return found


def _talks(corpus: Corpus) -> dict[str, Any]:
    """How the talks are written: OpenAI's role and content, or ShareGPT's from and value."""
    reader = RowReader(corpus)
    try:
        rows = reader.read(corpus.chunks(min(_LOOKED, corpus.rows))[0])
    finally:
        reader.close()
    talks = [row.fields["messages"] for row in rows if row.problem is None and row.fields["messages"]]
    first: Any = talks[0][0] if talks else None
    columns = {"messages": corpus.columns["messages"]}
    if "system" in corpus.columns:
        columns["system"] = corpus.columns["system"]
    if isinstance(first, dict) and "from" in first:
        return {"columns": columns}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    return {"columns": columns, "tags": {**tags, "system_tag": "system"}}
