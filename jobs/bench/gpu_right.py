"""Whole runs on a GPU against a float64 loop on it: in float32, in half precision, and with a worker that is killed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from torch import Tensor

from bench.commands import CommandFailedError, run_datainf
from bench.measure import Figure, Options, say
from bench.models import TARGETS, Shape, lengths, save, token_rows, write_text

SHAPE, ROWS, QUERIES, CHUNK_ROWS = Shape(256, 4), 240, 20, 16
SMALL = Shape(32, 2, vocabulary=64), 160, 4, 4  # chunks enough that a worker can be caught twice
_DAMPING = 0.1


def gpu_right(options: Options) -> Iterator[Figure]:
    """Relative errors, query by query, of the influences; and whether a killed worker changes a bit of the tables."""
    shape, rows, queries, chunk_rows = SMALL if options.small else (SHAPE, ROWS, QUERIES, CHUNK_ROWS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts = {
        "train": token_rows(lengths(rows, 8), shape.vocabulary, 9),
        "queries": token_rows(lengths(queries, 10), shape.vocabulary, 11),
    }
    for name, targets in TARGETS.items():
        folder = options.scratch / f"right-{name.replace(' ', '-')}"
        folder.mkdir()
        model = save(folder, shape, targets)
        for corpus, some in texts.items():
            write_text(folder / f"{corpus}.jsonl", some)
        say(f"gpu-right: the float64 loop, r=8 on {name}")
        right = looped(model, texts, device)
        case = f"hidden {shape.hidden}, {rows} rows × {queries} queries, r=8 on {name}"
        config: dict[str, Any] = {
            "train": {"path": str(folder / "train.jsonl")},
            "queries": {"path": str(folder / "queries.jsonl")},
            "cluster": {"max_workers": 1, "chunk_rows": chunk_rows},
        }
        halves = ("float32", "bfloat16", "float16") if device.type == "cuda" else ("float32",)
        for dtype in halves:
            say(f"gpu-right: {dtype}, r=8 on {name}")
            asked = {**config, "model": {**model, "dtype": dtype}}
            ran = run_datainf(asked, folder)
            found = influences(ran.output)
            errors = np.linalg.norm(found - right, axis=0) / np.linalg.norm(right, axis=0)
            ranks = [float(_rank_correlation(a, b)) for a, b in zip(found.T, right.T, strict=True)]
            note = (
                f"the median; the worst {errors.max():.2g}; rank correlation {np.median(ranks):.6f}, {min(ranks):.4f}"
            )
            note += f"; {ran.seconds:.3g} s, of which start-up {ran.startup:.3g} s and sweeps {ran.inside:.3g} s"
            aim: Any = ("≤", 1e-4) if dtype == "float32" else None
            yield Figure("gpu-right", case, f"{dtype} / float64", float(np.median(errors)), "", aim, note)
            if dtype == halves[min(1, len(halves) - 1)] and name == "q,v":
                undisturbed = _digest(ran.output)
                with _Killer() as killer:
                    again = run_datainf(asked, folder)
                same = float(_digest(again.output) == undisturbed)
                yield Figure(
                    "gpu-right", case, f"{dtype}: same bits", same, "", ("≥", 1), f"workers killed: {killer.kills}"
                )


def looped(model: dict[str, str], texts: dict[str, list[list[int]]], device: torch.device) -> np.ndarray:
    """DataInf as the paper writes it, rows × queries: one row at a time, plain autograd, all in float64."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model["base"], dtype=torch.float64)
    tuned = PeftModel.from_pretrained(base, model["adapter"], is_trainable=True).double().to(device).eval()
    parameters = [p for p in tuned.parameters() if p.requires_grad]

    def gradients(rows: list[list[int]]) -> list[list[Tensor]]:
        found = []
        for ids in rows:
            tokens = torch.tensor([[*ids, 1]], device=device)  # the end token, as the encoder adds it
            loss = tuned(input_ids=tokens, labels=tokens).loss
            found.append([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        return found

    train, queries = gradients(texts["train"]), gradients(texts["queries"])
    total = torch.zeros(len(train), len(queries), dtype=torch.float64, device=device)
    for k in range(len(parameters)):
        g, v = torch.stack([row[k] for row in train]), torch.stack([row[k] for row in queries])
        damping = _DAMPING * g.square().sum() / g.numel()
        h = torch.zeros_like(v)
        for row in g:
            h += (v @ row)[:, None] * row / (damping + row @ row)
        total -= g @ ((v - h / len(g)) / damping).T
    return total.cpu().numpy()


def influences(output: Path) -> np.ndarray:
    """The influences of a run, rows × queries, float64."""
    parts = [pq.read_table(path, columns=["influence"]) for path in sorted((output / "examples").glob("*.parquet"))]
    return np.concatenate([np.array(part["influence"].to_pylist(), dtype=np.float64) for part in parts])


def _digest(output: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(output.rglob("*.parquet")):
        total.update(path.relative_to(output).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


class _Killer:
    """Kills a worker of a run that this process has started as soon as it is seen at work; twice, if it can.

    Raises `CommandFailedError` where the run was over before a worker was caught: its bits would say nothing.
    """

    def __init__(self, most: int = 2) -> None:
        self.kills, self._most, self._over = 0, most, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Killer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is None and not self.kills:
            raise CommandFailedError("the run was over before a worker was seen at work")

    def _watch(self) -> None:
        import psutil

        while self.kills < self._most and not self._over.wait(0.02):
            for process in psutil.Process().children(recursive=True):  # nobody else's
                with suppress(psutil.Error):  # ended since it was listed
                    if (process.cmdline() or [""])[0].startswith("ray::Worker.run"):
                        process.kill()
                        process.wait(5)  # else it could be counted twice
                        self.kills += 1
                        break
