"""Kept gradients that are given to another fold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from datainf_ray.cluster.chunk import FACTS, NONFINITE, Kept, replay
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Scores


def test_a_row_whose_scores_are_beyond_float32_has_a_status() -> None:
    count = 4
    status = ["ok", "ok", "ok", "unreadable"]
    facts = pa.table(
        [range(count), ["x"] * count, [3] * count, [1.0] * count, status, [""] * count, [""] * count], schema=FACTS
    )
    gradients = np.ones((3, 5), np.float32)
    gradients[1] = 1e12
    kept = Kept(facts, [("a", np.arange(3), gradients)])
    vectors = {"a": {"vector": torch.full((2, 5), 1e29)}}
    swept = replay(kept, lambda: Scores([Block("a", "", (5,))], count, vectors=vectors), "cpu")
    assert swept.facts["status"].to_pylist() == ["ok", NONFINITE, "ok", "unreadable"]
    assert swept.usable.tolist() == [True, False, True, False]
    assert swept.facts.schema == FACTS
