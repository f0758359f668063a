"""Does removing rows do what the scores say? A bank of fine-tunes on parts of the rows, and what methods say of it.

Three questions, asked of every method:

- The linear datamodeling score (Park et al., TRAK, ICML 2023): over random subsets S of the rows, do the summed
  influences of S's rows on a query rank the query's losses after training on S? Spearman's correlation, the mean over
  queries. Subsets are half of the rows, and all but one in a hundred.
- Removal: how much does a query's loss rise when its most helpful rows are left out, 1 % of all, beside random ones?
- Tail-patch (Chang et al., 2024): how much does a query's loss fall by one more step of training on a helpful row?

The bank is made first, and is the same for all methods: bank/subsets.json has the rows of every subset,
bank/recipe.json how it was trained, with a digest that the bank's cells are named by; adapters/ has what was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray.config import load_config
from datainf_ray.evaluation.words import SharedWords
from datainf_ray.request.job import prepare
from datainf_ray.runs.directory import RunDirectory
from experiments.common import language
from experiments.common.attribution import Attribution, losses_of, with_adapter
from experiments.common.cells import Kept, compute
from experiments.common.figures import intervals
from experiments.common.finetune import Recipe, fine_tune
from experiments.common.statistics import bootstrap, spearman
from experiments.common.tables import markdown
from experiments.retrain.patch import patched

METHODS = ("datainf", "exact", "lissa", "hessian-free", "cosine", "representation", "bm25", "loss", "random")
KINDS = {"half": "50 % subsets", "most": "1 % left out"}
_TOP = 10  # rows of a query that tail-patch looks at


def run(config: Mapping[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """The experiment's files, by name: the bank, the methods' influences, records and tables."""
    bank = Bank(config)
    where = bank.common, config["cpus"], config["gpus"]
    directory.write_json("bank/recipe.json", bank.recipe)
    full = compute(directory, trained, bank.cells({"full": range(bank.rows)}), *where)
    random = bank.subsets()
    directory.write_json("bank/subsets.json", random)
    scores = compute(directory, scored, bank.cells({"scores": []}), *where)
    influences = {r["method"]: np.array(r["influence"], np.float32).reshape(bank.rows, -1) for r in scores.to_pylist()}
    without, removed = bank.removals(influences)
    losses = compute(directory, trained, bank.cells({**random, **without}), *where)
    patches = compute(directory, tail_patched, bank.cells({"patches": []}), *where)
    after = {r["subset"]: np.array(r["losses"]) for r in [*full.to_pylist(), *losses.to_pylist()]}
    patch = np.array([r["fall"] for r in patches.to_pylist()])  # rows × queries
    records = [
        *_datamodeling(influences, random, after),
        *_removals(removed, after),
        *_patches(influences, patch),
    ]
    found = pa.Table.from_pylist(records)
    files = {"results.parquet": found, "influences.parquet": scores, "losses.parquet": losses}
    return {**files, "table.md": table(found), "figure.svg": figure(found)}


class Bank:
    """The rows, the recipe, and which subsets are trained on."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        keys = ("model", "data", "each", "queries_each", "recipe", "targets", "seed")
        self.common = {key: config[key] for key in keys}
        self.rows, self.config = 10 * config["each"], config
        told = json.dumps(self.common, sort_keys=True)
        self.digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        self.recipe = {**self.common, "digest": self.digest}

    def cells(self, subsets: Mapping[str, Iterable[int]]) -> dict[str, dict[str, Any]]:
        """A cell for every subset; its name has the recipe's digest, so that another recipe's is not taken for it."""
        return {f"{self.digest}-{name}": {"subset": name, "kept": list(rows), "bank": self.digest}
                for name, rows in subsets.items()}  # fmt: skip

    def subsets(self) -> dict[str, list[int]]:
        """The random ones: which rows are trained on."""
        found = {}
        for kind, count, share in (("half", self.config["half"], 0.5), ("most", self.config["most"], 0.99)):
            for k in range(count):
                draw = np.random.default_rng((self.config["seed"], len(kind), k, round(100 * share)))
                found[f"{kind}-{k:03d}"] = sorted(draw.permutation(self.rows)[: int(share * self.rows)].tolist())
        return found

    def removals(
        self, influences: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, list[int]], dict[str, list[tuple[int, str]]]]:
        """Subsets that lack a query's most helpful rows, and by method the (query, subset); random ones beside them."""
        gone = max(round(0.01 * self.rows), 1)
        subsets: dict[str, list[int]] = {}
        removed: dict[str, list[tuple[int, str]]] = {}
        queries = range(self.config["removal_queries"])
        for method, scores in influences.items():
            removed[method] = []
            for query in queries:
                out = sorted(np.argsort(scores[:, query], kind="stable")[:gone].tolist())
                name = f"without-{'-'.join(map(str, out))}"
                subsets[name] = sorted(set(range(self.rows)) - set(out))
                removed[method].append((query, name))
        return subsets, removed


def trained(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """The queries' losses after training on a subset."""
    recipe = Recipe(**values["recipe"])
    with kept.workspace() as folder:
        request = _request(values, folder, values["kept"])
        (adapter,) = fine_tune(request, recipe, values["seed"], folder / "adapters", [recipe.epochs])
        kept.keep(folder)
        return [{"losses": losses_of(with_adapter(request, adapter), "queries").tolist()}]


def scored(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """The influences of all rows on all queries, by every method, for the model that was trained on all rows."""
    with _full(values, kept).workspace() as folder:
        request = _whole(values, folder)
        attribution = Attribution(request)
        n, m = len(attribution.losses), len(attribution.queries.losses)
        job = prepare(load_config(request), writable=False)
        words = SharedWords(job.corpora["train"], job.corpora["queries"], job.groups)
        others = {
            "bm25": -np.stack(list(words.scores(range(m))), 1),
            "loss": np.repeat(attribution.losses[:, None], m, 1),
            "random": np.random.default_rng(values["seed"]).standard_normal((n, m)),
        }
        found = []
        for method in METHODS:
            scores = others[method] if method in others else attribution.by(method).influence
            found.append({"method": method, "influence": scores.astype(np.float32).ravel().tolist()})
        return found


def tail_patched(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """For every row, by how much the queries' losses fall with one more step on it."""
    with _full(values, kept).workspace() as folder:
        rate = Recipe(**values["recipe"]).learning_rate
        return [{"row": k, "fall": fall.tolist()} for k, fall in enumerate(patched(_whole(values, folder), rate))]


def _full(values: Mapping[str, Any], kept: Kept) -> Kept:
    return Kept(kept.directory, f"{values['bank']}-full")


def _whole(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The request for the model that was trained on all rows."""
    epochs = Recipe(**values["recipe"]).epochs
    return with_adapter(_request(values, folder, None), folder / "adapters" / f"epoch-{epochs:02d}")


def _request(values: Mapping[str, Any], folder: Path, kept: Sequence[int] | None) -> dict[str, Any]:
    """The request over some of the training rows (None: all) and all queries; it has no adapter yet."""
    train = language.rows(f"{values['data']}/train.parquet", values["each"], values["seed"])
    queries = language.rows(f"{values['data']}/test.parquet", values["queries_each"], values["seed"])
    files = (
        language.write(train if kept is None else train.take(list(kept)), folder / "train.parquet"),
        language.write(queries, folder / "queries.parquet"),
    )
    return language.request(language.base_of(values["model"], folder / "base"), *files, folder, values["targets"])


def _datamodeling(
    influences: Mapping[str, np.ndarray], subsets: Mapping[str, Sequence[int]], after: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    records = []
    for kind, told in KINDS.items():
        names = [name for name in subsets if name.startswith(kind)]
        if not names:
            continue
        seen = np.stack([after[name] for name in names])  # subsets × queries
        for method, scores in influences.items():
            said = np.stack([scores[subsets[name]].sum(0) for name in names])
            each = np.array([spearman(said[:, q], seen[:, q]) for q in range(seen.shape[1])])
            records.append(_record(f"datamodeling score, {told}", method, np.nan_to_num(each)))
    return records


def _removals(
    removed: Mapping[str, Sequence[tuple[int, str]]], after: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    return [
        _record(
            "loss rise without the top 1 %", method, np.array([after[name][q] - after["full"][q] for q, name in some])
        )
        for method, some in removed.items()
    ]


def _patches(influences: Mapping[str, np.ndarray], patch: np.ndarray) -> list[dict[str, Any]]:
    records = []
    for method, scores in influences.items():
        best = np.argsort(scores, axis=0, kind="stable")[:_TOP]  # rows × queries
        records.append(_record("loss fall by one step", method, np.take_along_axis(patch, best, 0).mean(0)))
    return records


def _record(question: str, method: str, each: np.ndarray) -> dict[str, Any]:
    mean, low, high = bootstrap(each)
    return {"question": question, "method": method, "mean": mean, "low": low, "high": high, "queries": len(each)}


def figure(records: pa.Table) -> bytes:
    """Every question's answers side by side, by method."""
    by = {(r["question"], r["method"]): (r["mean"], r["low"], r["high"]) for r in records.to_pylist()}
    questions = dict.fromkeys(question for question, _ in by)
    return intervals(METHODS, {q.replace(", ", "\n"): [by[q, method] for method in METHODS] for q in questions})


def table(records: pa.Table) -> str:
    """A line a method, a column a question: the mean over queries, and its 95 % interval."""
    rows = records.to_pylist()
    questions = list(dict.fromkeys(r["question"] for r in rows))
    lines = []
    for method in METHODS:
        own = {r["question"]: r for r in rows if r["method"] == method}
        cells = {q: f"{own[q]['mean']:.3f} [{own[q]['low']:.3f}, {own[q]['high']:.3f}]" for q in questions}
        lines.append({"method": method, **cells})
    return markdown(lines)
