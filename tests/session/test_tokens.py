"""`datainf tokens`: what a user sees of rows before anything is run, good rows and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.planning.forecast import render
from tests import tiny
from tests.runs_of import status_of


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> Path:
    path = tmp_path / "attribute.yaml"
    path.write_text(yaml.safe_dump(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    rows = [{"name": f"t{k}", "prompt": "w1 w2", "completion": f" w{k} w4"} for k in range(5)]
    rows.append({"name": "t5", "prompt": "w1", "completion": None})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_first_rows_are_shown_with_their_targets_marked(config, monkeypatch, capsys):
    assert status_of(monkeypatch, "tokens", config) == 0
    out = capsys.readouterr().out
    assert out.count("train row") == 3
    heading, text = out.splitlines()[:2]
    assert heading == "train row 0 · t0 · 6 tokens · 3 targets: everything behind the prompt"
    assert text.replace(" ", "") == "<s>w1w2⟦w0w4</s>⟧"
    assert not (config.parent / "run").exists()


def test_any_row_can_be_asked_for_and_a_bad_one_says_why(config, monkeypatch, capsys):
    assert status_of(monkeypatch, "tokens", config, "--row", 5, "--row", 4) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first.startswith("train row 4")
    assert second == ("train row 5 · t5 · 0 tokens · unreadable: completion is null")
    assert status_of(monkeypatch, "tokens", config, "--row", 6) == 2
    assert capsys.readouterr().err == "error: --row: 6: train has 6 rows; give one from 0 to 5\n"
    assert status_of(monkeypatch, "tokens", config, "--row", -1) == 2


def test_rows_of_python_are_numbers(config):
    with pytest.raises(RequestError, match=r"^--row: x: is no row's number; give one from 0 to 5$"):
        datainf_ray.tokens(config, rows=["x"])  # type: ignore[list-item]
    assert datainf_ray.tokens(config, rows=[]) == ()
    assert [row.row for row in datainf_ray.tokens(config, rows=np.array([3, 1, 3]))] == [1, 3]  # as a table gives them


def test_programs_get_every_token(config, monkeypatch, capsys):
    assert status_of(monkeypatch, "tokens", config, "--json", "--row", 1, "--set", "train.max_length=5") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["tokens"] == 5
    assert row["tokens_cut"] == 1
    assert row["targets"] == 2
    assert [token["target"] for token in row["sequences"][0]["tokens"]] == [False] * 3 + [True] * 2
    assert row["sequences"][0]["tokens"][1] == {"id": 5, "token": "w1", "target": False}


def test_the_queries_are_another_corpus_and_the_training_rows_need_not_be_there(config, monkeypatch, capsys):
    (config.parent / "train.jsonl").unlink()
    assert status_of(monkeypatch, "tokens", config, "--queries", "--row", 0) == 0
    assert capsys.readouterr().out.startswith("queries row 0")
    assert status_of(monkeypatch, "tokens", config) == 2


def test_in_python_it_is_a_tuple_of_rows_and_plan_shows_one(config):
    rows = datainf_ray.tokens(config, rows=[2])
    assert len(rows) == 1
    assert rows[0].row == 2
    assert rows._repr_html_().count("<span") == 1
    expected = datainf_ray.plan(config)
    assert expected.row == datainf_ray.tokens(config, rows=[0])[0]
    assert "a row         train row 0" in render(expected)


def test_a_terminal_with_colours_has_no_brackets(config, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert status_of(monkeypatch, "tokens", config, "--row", 0) == 0
    out = capsys.readouterr().out
    assert "⟦" not in out
    assert "\x1b[" in out
