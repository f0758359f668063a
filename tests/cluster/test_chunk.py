"""What comes between a chunk's gradients and a fold: gradients that were kept, and transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from datainf_ray.cluster.chunk import NONFINITE, Keeper, Kept, Recorder, replay, sweep_chunk
from datainf_ray.cluster.known import FACTS, facts_of
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Scores
from datainf_ray.influence.projection import Projector
from datainf_ray.influence.transform import Transform
from tests import tiny
from tests.model.compare import examples_of, rows_for


def test_a_row_whose_scores_are_beyond_float32_has_a_status() -> None:
    count = 4
    status = ["ok", "ok", "ok", "unreadable"]
    facts = pa.table(
        [
            range(count),
            ["x"] * count,
            [3] * count,
            [0] * count,
            [1.0] * count,
            status,
            [""] * count,
            [""] * count,
            *([[None] * count] * 3),
        ],
        schema=FACTS,
    )
    gradients = np.ones((3, 5), np.float32)
    gradients[1] = 1e12
    kept = Kept(facts, [("a", np.arange(3), gradients, None)])
    vectors = {"a": {"vector": torch.full((2, 5), 1e29)}}
    swept = replay(kept, lambda: Scores([Block("a", "", (5,))], count, vectors=vectors), "cpu")
    assert swept.facts["status"].to_pylist() == ["ok", NONFINITE, "ok", "unreadable"]
    assert swept.usable.tolist() == [True, False, True, False]
    assert swept.facts.schema == FACTS


class Preconditioner:
    """Every gradient twice as long."""

    own_norms = True

    def size(self, block: str) -> int:
        return 5

    def apply(self, block: str, gradients: torch.Tensor) -> torch.Tensor:
        return 2 * gradients


def test_a_transform_stands_between_the_backward_pass_and_whatever_takes_gradients(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    replica, task = tiny.replica(model), tiny.task("causal-lm")
    examples = examples_of(rows_for(model, tmp_path))
    blocks = replica.blocks
    vectors = {b.name: {"vector": torch.randn(2, b.size, generator=torch.Generator().manual_seed(0))} for b in blocks}

    def swept(transform: Transform | None, recorder: Recorder | None = None) -> Scores:
        def make() -> Scores:
            return Scores(blocks, len(examples), vectors=vectors)

        recorders = () if recorder is None else (recorder,)
        fold = sweep_chunk(replica, examples, make, 60, lambda e, at: task.batch(e, at, 0), recorders, transform).fold
        assert isinstance(fold, Scores)
        return fold

    plain, keeper = swept(None), Keeper()
    doubled = swept(Preconditioner(), keeper)
    torch.testing.assert_close(doubled.scores, 2 * plain.scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(doubled.sqnorms, 4 * plain.sqnorms, rtol=1e-6, atol=0)
    facts = facts_of(examples, np.ones(len(examples)), [e.status for e in examples])
    again = replay(Kept(facts, keeper.updates), lambda: Scores(blocks, len(examples), vectors=vectors), "cpu").fold
    torch.testing.assert_close(again.influence(), doubled.influence(), rtol=0, atol=0)

    side = 4
    projector, small = Projector(blocks, side, seed=0), {}
    for b in blocks:
        small[b.name] = {"vector": projector.apply(b.name, vectors[b.name]["vector"])}
    vectors = small
    projected = swept(projector)
    torch.testing.assert_close(projected.sqnorms, plain.sqnorms, rtol=1e-6, atol=0)  # those of the gradients
    keeper = Keeper()
    vectors = {b.name: {"vector": torch.zeros(1, b.size)} for b in blocks}
    swept(None, keeper)
    want = torch.zeros(len(examples), 2)
    for block, rows, gradients, _ in keeper.updates:
        values = projector.apply(block, torch.from_numpy(gradients))
        want[torch.from_numpy(rows)] -= values @ small[block]["vector"].T
    torch.testing.assert_close(projected.scores, want, rtol=1e-4, atol=1e-7)
