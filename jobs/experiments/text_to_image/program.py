"""The paper's text-to-image experiment on a model that is fine-tuned in seconds: which rows taught it a style?

A cell of the first kind is one fine-tune on rows of several styles. For every query, a picture that it has not seen,
rows are ordered from the most helpful to the most harmful, and those of the query's style are looked for: by each
method, and by each way to take a diffusion loss (timesteps, noise, paired or mean; DESIGN.md, `diffusion`).

A cell of the second kind is a fine-tune on a random half of the rows. From all of them follows the linear datamodeling
score (Park et al., TRAK, ICML 2023): do the summed influences of a half's rows on a query rank the losses that the
query has after training on each half? Spearman's correlation over halves. Those losses are taken at other timesteps and
with other noise than any attribution's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datainf_ray.runs.directory import RunDirectory
from experiments.common.attribution import Attribution
from experiments.common.cells import Kept, compute
from experiments.common.classes import by_query
from experiments.common.figures import STYLES, axes, save
from experiments.common.statistics import bootstrap, spearman
from experiments.common.tables import markdown
from experiments.text_to_image.digits import Digits
from experiments.text_to_image.pipeline import Pictures

METHODS = ("datainf", "exact", "hessian-free", "cosine")
ALIKE = ("pixels", "latents")
OTHERS = (*ALIKE, "loss", "random")  #: what looks at no gradient
SETTING = ("combine", "noise", "timesteps")
_NONE = {"combine": "", "noise": "", "timesteps": 0}
_ALL = ("model", "data", "styles", "pictures", "each", "queries_each", "recipe", *SETTING)


def run(config: Mapping[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """The experiment's files, by name: its records, two tables, the figure."""
    where = config["cpus"], config["gpus"]
    common = {key: config[key] for key in _ALL if key in config}
    seeds = {f"seed{seed}": {"seed": seed} for seed in range(config["seeds"])}
    scores = compute(directory, scored, seeds, common, *where)
    halves = {f"half{k:03d}": {"half": k} for k in range(config["half"])}
    found = scores.drop_columns("influence")
    files: dict[str, Any] = {"table.md": styles_table(found)}
    if halves:
        after = compute(directory, halved, halves, {**common, "seed": 0}, *where)
        models = datamodeling(scores, after)
        files |= {"halves.md": models_table(models), "figure.svg": figure(models), "datamodeling.parquet": models}
    return {"results.parquet": found, **files}


def subject(values: Mapping[str, Any], folder: Path) -> Digits | Pictures:
    """What is fine-tuned: a pipeline where the configuration has `pictures`, and else the UNet of digits."""
    return (Pictures if "pictures" in values else Digits)(values, folder)


def scored(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """By epoch, setting, method and query: AUC and recall of the rows of the query's class; and the influences."""
    with kept.workspace() as folder:
        model = subject(values, folder)
        train, queries = model.rows()
        files = [folder / "train.parquet", folder / "queries.parquet"]
        for table, file in zip((train, queries), files, strict=True):
            pq.write_table(table, file)
        epochs = values["recipe"]["epochs"]
        adapters = model.fine_tune(train, values["seed"], folder / "adapters", epochs)
        kept.keep(folder)
        own, asked = (table["class"].to_numpy(zero_copy_only=False) for table in (train, queries))
        found = []
        for epoch, adapter in zip(epochs, adapters, strict=True):
            seen = {
                "epoch": epoch,
                "query_loss": float(model.losses_of(adapter, queries).mean()),
                "last": epoch == epochs[-1],
            }
            for setting in _settings(values):
                places = str(files[0]), str(files[1]), str(adapter)
                attribution = Attribution(model.request(*places, setting))
                for method in METHODS:
                    by = attribution.by(method)
                    seconds = {"seconds": by.seconds, "gradient_seconds": attribution.train.seconds}
                    found += _found(method, by.influence, own, asked, {**setting, **seen, **seconds})
            for method, influence in _others(model, adapter, train, queries).items():
                seconds = {"seconds": 0.0, "gradient_seconds": 0.0}
                found += _found(method, influence, own, asked, {**_NONE, **seen, **seconds})
        return found


def halved(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    """The queries' losses after a fine-tune on a half of the rows."""
    with kept.workspace() as folder:
        model = subject(values, folder)
        train, queries = model.rows()
        some = train.take(half_of(train.num_rows, values["half"]))
        epochs = values["recipe"]["epochs"][-1:]
        (adapter,) = model.fine_tune(some, values["seed"], folder / "adapters", epochs)
        return [{"losses": model.losses_of(adapter, queries).tolist()}]


def half_of(rows: int, number: int) -> list[int]:
    """The rows of a random half."""
    drawn: list[int] = np.random.default_rng((0, number)).permutation(rows)[: rows // 2].tolist()
    return sorted(drawn)


def datamodeling(scores: pa.Table, after: pa.Table) -> pa.Table:
    """By setting, method and query of the first seed, after its last epoch: Spearman's correlation over halves."""
    losses = np.array(after["losses"].to_pylist())  # halves × queries
    records = []
    for r in scores.to_pylist():
        if r["influence"] is None or not r["last"] or r["seed"] != 0:
            continue
        influence = np.array(r["influence"])
        said = [influence[half_of(len(influence), k)].sum() for k in after["half"].to_pylist()]
        named = {key: r[key] for key in ("method", "query", "class", *SETTING)}
        records.append({**named, "score": spearman(np.array(said), losses[:, r["query"]])})
    return pa.Table.from_pylist(records)


def _settings(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for one in product(*(values[key] for key in SETTING)):
        yield dict(zip(SETTING, one, strict=True))


def _others(model: Digits | Pictures, adapter: Path, train: pa.Table, queries: pa.Table) -> dict[str, np.ndarray]:
    """Orders that need no gradient, as influences (n × m): alike in pixels or latents, of a high loss, random."""
    losses = model.losses_of(adapter, train)
    shape = train.num_rows, queries.num_rows
    return {
        **{name: -likeness for name, likeness in model.alike(adapter, train, queries).items()},
        "loss": np.broadcast_to(losses[:, None], shape),
        "random": np.random.default_rng(model.values["seed"]).standard_normal(shape),
    }


def _found(
    method: str, influence: np.ndarray, train: np.ndarray, queries: np.ndarray, seen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    def kept(scores: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        return {"influence": scores.astype(np.float32).tolist() if seen["last"] else None}

    return by_query(method, influence, train, queries, seen, kept)


def _groups(records: pa.Table, keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in records.to_pylist():
        found.setdefault(tuple(r[key] for key in keys), []).append(r)
    return dict(sorted(found.items()))


def styles_table(records: pa.Table) -> str:
    """A line for every epoch and setting: each method's AUC with half its interval, and recall; means over queries."""
    lines = []
    for (epoch, *setting), some in _groups(records, ("epoch", *SETTING)).items():
        if tuple(setting) == tuple(_NONE.values()):
            continue
        others = [r for r in records.to_pylist() if r["epoch"] == epoch and r["combine"] == ""]
        line: dict[str, Any] = {"epoch": epoch, **dict(zip(SETTING, setting, strict=True))}
        for method in (*METHODS, *ALIKE):
            own = [r for r in [*some, *others] if r["method"] == method]
            if not own:
                continue
            area, low, high = bootstrap(np.array([r["auc"] for r in own]))
            line[method] = f"{area:.3f} ({(high - low) / 2:.3f}), {np.mean([r['recall'] for r in own]):.2f}"
        lines.append(line)
    return markdown(lines)


def models_table(records: pa.Table) -> str:
    """A line for every setting: each method's linear datamodeling score, a mean over queries, and its interval."""
    groups = _groups(records, SETTING)
    beside = groups.pop(tuple(_NONE.values()))
    lines = []
    for setting, some in groups.items():
        line: dict[str, Any] = dict(zip(SETTING, setting, strict=True))
        there = {r["method"] for r in [*some, *beside]}
        for method in [m for m in (*METHODS, *OTHERS) if m in there]:
            mean, low, high = _interval([*some, *beside], method)
            line[method] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(line)
    return markdown(lines)


def _interval(records: list[dict[str, Any]], method: str) -> tuple[float, float, float]:
    return bootstrap(np.array([r["score"] for r in records if r["method"] == method]))


def figure(records: pa.Table) -> bytes:
    """The linear datamodeling score over timesteps: a panel for every other setting."""
    groups = _groups(records, SETTING)
    beside = groups.pop(tuple(_NONE.values()))
    panels = sorted({key[:2] for key in groups})
    drawing, places = axes(len(panels), "timesteps", "linear datamodeling score")
    for panel, place in zip(panels, places, strict=True):
        keys = [key for key in groups if key[:2] == panel]
        for method in (*METHODS, "pixels"):
            each = [_interval([*groups[key], *beside], method) for key in keys]
            means, low, high = np.array(each).T
            at = [key[2] for key in keys]
            place.plot(at, means, label=method, marker="o", markersize=3, **STYLES[method])
            place.fill_between(at, low, high, alpha=0.1, color=STYLES[method]["color"])
        place.set_title(f"{panel[0]}, noise by {panel[1]}" if panel[1] == "row" else f"{panel[0]}, shared noise")
    return save(drawing, places)
