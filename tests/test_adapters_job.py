"""jobs/adapters.py, which compares whole runs of many architectures and adapters with a float64 loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parents[1] / "jobs" / "adapters.py"
SOME = [
    "Mixtral / fused experts alone",
    "DeBERTa-v3 / q,v",
    "Qwen3-MoE / experts of transformers 4",
    "GPT-2 / all of it trained",
    "Gemma 3 / LoRA on the embeddings",
    "Llama / extended, new tokens trained",
    "Llama / IA3",
    "Llama / BOFT",
    "BERT / biases",
    "ConvBERT / q,v",
    "LLaVA, texts / q,v",
    "Llama, a classifier / q,v",
    "T5 / DoRA",
]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_some_cases_are_right(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    ran = subprocess.run(
        [sys.executable, str(JOB), "--table", str(table), "--only", *SOME], capture_output=True, text=True, timeout=800
    )
    lines = table.read_text().splitlines()[2:]
    assert ran.returncode == 0, "\n".join(lines) + ran.stderr[-2000:]
    named = {" / ".join(cell.strip() for cell in line.split("|")[1:3]) for line in lines}
    assert set(SOME) <= named
    assert any(line.startswith("| Llama, a classifier | q,v | sequence-classification | by hooks |") for line in lines)
    assert f"{len(lines)} cases: " in ran.stdout
    assert "; 0 wrong; " in ran.stdout


def test_a_name_that_no_case_has_is_told() -> None:
    ran = subprocess.run([sys.executable, str(JOB), "--only", "nothing"], capture_output=True, text=True, timeout=200)
    assert (ran.returncode, ran.stderr.strip().splitlines()[-1]) == (2, "no case has such a name")
