"""Tags of metrics: Ray takes ASCII alone, and folders have names in every alphabet."""

from __future__ import annotations

from pathlib import Path

import pytest

from datainf_ray.cluster.metrics import tag
from tests import tiny
from tests.runs_of import attribute


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        ("s3://bucket/runs/a b%20{1}~", "s3://bucket/runs/a b%20{1}~"),
        ("runs/größe", "runs/gr%C3%B6%C3%9Fe"),
        ("a\nb\x7f", "a%0Ab%7F"),
        ("\udce9", "%E9"),  # how Python has a file name's byte that is no UTF-8
    ],
)
def test_a_tag_is_the_text_with_all_but_ascii_encoded(text: str, tagged: str) -> None:
    assert tag(text) == tagged


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_folders_of_a_run_may_have_names_in_any_alphabet(tmp_path: Path) -> None:
    folder = tmp_path / "größe × 実行"
    folder.mkdir()
    tiny.write_rows(folder / "train.jsonl", 10, seed=1)
    tiny.write_rows(folder / "queries.jsonl", 2, seed=2)
    output = folder / "ход 'бега'"
    run = attribute(tiny.configuration(folder, tiny.save_model(folder, "llama"), output))
    assert run.scores().num_rows == 10
    assert (output / "report.html").exists()
