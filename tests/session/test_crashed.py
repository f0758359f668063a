"""A row that ends every worker, and a device that is too small: the others are scored, and the run says so."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

import datainf_ray
from tests import reference, tiny
from tests.faults import set_trap
from tests.runs_of import COMMAND, scores

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_deadly_row_is_found_and_the_others_are_scored(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 16, seed=1)
    tiny.write_rows(tmp_path / "queries.jsonl", 3, seed=2)
    model = tiny.save_model(tmp_path, "llama")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[9]["completion"] = "w1 strange w2 w3"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [reference.encode(model, str(tmp_path / f"{name}.jsonl")) for name in ("train", "queries")]
    peft = reference.load(model)
    rest = [k for k in range(16) if k != 9]
    want = reference.datainf(
        reference.gradients(peft, [plain[0][k] for k in rest]), reference.gradients(peft, plain[1])
    )

    set_trap(tmp_path / "base", most_tokens=40)
    config = tiny.configuration(tmp_path, model | {"trust_remote_code": True}, tmp_path / "run")
    config["cluster"] |= {"chunk_rows": 4}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [*COMMAND, "run", str(tmp_path / "c.yaml")],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "row 9 of train ended every worker; left out with the status crashed" in done.stderr
    run = datainf_ray.open_run(tmp_path / "run")
    examples = run.examples()
    assert examples["row"].to_pylist() == list(range(16))
    assert examples["status"].to_pylist() == ["ok" if k != 9 else "crashed" for k in range(16)]
    assert examples["influence"][9].as_py() is None
    assert run.record.crashed == {"train": [9], "queries": []}
    assert [p.model_dump() for p in run.record.problems] == [
        {"id": "row-9", "status": "crashed", "detail": "every worker that computed it died"}
    ]
    assert reference.worst(scores(run)[rest], want) < 1e-4
    smaller = [sweep.get("smaller_batches", {}) for sweep in run.summary()["sweeps"]]
    assert any(smaller)
    assert all(tokens == 30 for sweep in smaller for tokens in sweep.values())  # half of the 60 that were asked for
    assert torch.isfinite(scores(run)[rest]).all()
