"""A worker that is given another run has nothing of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny, warm
from tests.runs_of import attribute, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.mark.slow
def test_a_worker_that_had_another_run_gives_the_bits_of_a_new_one(tmp_path: Path) -> None:
    """Sweeps of both runs have the same numbers; models, rows, queries, blocks and projections are others."""
    configs = []
    for arch, rows, side in (("llama", 40, 8), ("bert", 24, 4)):
        folder = tmp_path / arch
        folder.mkdir()
        labels = 3 if arch == "bert" else None
        tiny.write_rows(folder / "train.jsonl", rows, 1, labels)
        tiny.write_rows(folder / "queries.jsonl", rows // 8, 2, labels)
        model = tiny.save_model(folder, arch)
        configs.append(tiny.configuration(folder, model, folder / "fresh", index=True, index_projection=side))
    with warm.none():
        fresh = [tables(attribute(config)) for config in configs]
    warm._dismiss_idle()
    others = set(warm._hired)  # of tests before, which have died at work
    again = [tables(attribute(c, output=f"{c['output']}-{turn}")) for turn in (1, 2) for c in configs]
    assert [runs for actor, (_, runs) in warm._hired.items() if actor not in others] == [4]  # one did them all
    assert again == fresh + fresh
