"""What a run says at its end, and whether that is enough: rows without a score, hostile ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from datainf_ray import RunFailedError, open_run
from datainf_ray.common.errors import RequestError
from datainf_ray.runs.record import tell_unsolved
from datainf_ray.session.outcome import require_scores, scored
from tests import tiny
from tests.runs_of import attribute, status_of

#: Clears the screen, turns the text around, hides; and is long.
HOSTILE = "\x1b[2J\x9b31m\x00\u202eevil\u200b\r\nnext " + "long" * 2000


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> Path:
    """40 rows of which two cannot be used, one of them with a hostile id, and so has a query."""
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[3] |= {"completion": None, "name": HOSTILE}
    rows[7] |= {"completion": None}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    queries[0] |= {"name": HOSTILE}
    queries[1] |= {"name": HOSTILE + "2", "completion": None}
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    path = tmp_path / "attribute.yaml"
    path.write_text(yaml.safe_dump(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    return path


@pytest.mark.parametrize(
    ("curvature", "said"),
    [
        ({"bound": 1e-7}, None),
        ({"way": "direct", "residual": 1e-12}, None),
        (
            {"way": "direct", "residual": 2e-3},
            "a block's relative residual is 2.0e-03, above method.tolerance, 1e-06: float64 comes no nearer at so "
            "small a method.damping",
        ),
        ({"way": "conjugate gradient", "residual": 1e-6, "iterations": 30}, None),
        (
            {"way": "conjugate gradient", "residual": 0.2, "iterations": 3},
            "after 3 iterations a block's relative residual is 2.0e-01, above method.tolerance, 1e-06: allow more "
            "method.iterations, or a larger method.damping",
        ),
        ({"way": "series", "residual": 0.009}, None),
        (
            {"way": "series", "residual": 0.97},
            "the series is far from its limit, the inverse: a block's relative residual is 0.97, from 1 before the "
            "first term to 0; more method.iterations are nearer",
        ),
    ],
)
def test_an_inverse_that_is_far_from_the_exact_one_is_told(curvature: dict[str, Any], said: str | None) -> None:
    assert tell_unsolved(curvature, {"name": "exact", "tolerance": 1e-6}) == said
    assert tell_unsolved(curvature, {"name": "of a version that had no such key"}) is None


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_too_many_rows_without_a_score_fail_a_run_that_is_done(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share = "38 of 40 rows scored; 5 % without a score: 2 unreadable"
    assert status_of(monkeypatch, "run", config, "--progress", "lines", "--fail-over", "4%") == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.startswith(
        "failed: 5 % of the rows have no score, 2 of 40, and results.most_bad_rows is 4 %; the first is"
    )
    assert "unreadable: " in last
    assert lines[-1].startswith("done in ")
    assert lines[-1].endswith(share)
    done = open_run(str(config.parent / "run"))
    assert done.state == "done"
    assert done.scores().num_rows == 40
    before = done.record.finished
    # each time that it is asked, by a limit that is no part of what the run is; nothing is computed again
    assert status_of(monkeypatch, "run", config, "--set", "results.most_bad_rows=0.049") == 1
    assert "already done" in capsys.readouterr().err
    with pytest.raises(RunFailedError, match="2 of 40"):
        attribute(yaml.safe_load(config.read_text()), **{"results.most_bad_rows": 0})
    for enough in (["--fail-over", "5%"], ["--fail-over", "0.05"], ["--set", "results.most_bad_rows=1"], []):
        assert status_of(monkeypatch, "run", config, "--progress", "json", *enough) == 0
        *_, last = capsys.readouterr().out.splitlines()
        assert json.loads(last)["text"].endswith(share)
    assert open_run(done.url).record.finished == before
    _nothing_hostile_is_shown(done.url, config, monkeypatch, capsys)


def _nothing_hostile_is_shown(
    url: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "run", config, "--progress", "lines") == 0
    said = capsys.readouterr().err
    assert status_of(monkeypatch, "top", url) == 0
    table = capsys.readouterr().out
    assert status_of(monkeypatch, "top", url, "--query", "1") == 2
    wrong = capsys.readouterr().err
    assert len(wrong.splitlines()) == 1
    page = (Path(url) / "report.html").read_text(encoding="utf-8")
    for text in (said, table, wrong, page, open_run(url)._repr_html_()):
        assert "evil" in text
        assert not set(text) & set("\x00\x1b\x9b\r\u202e\u200b")
        assert "long" * 100 not in text
    assert len(said.splitlines()) < 12
    assert status_of(monkeypatch, "top", url, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == open_run(url).top()["id"][0].as_py()
    assert open_run(url).queries()["id"][0].as_py() == HOSTILE  # for programs it is whole


@pytest.mark.parametrize("text", ["many", "-1", "101%", "1.5", "nan", "0.1%%", "%", "", "inf"])
def test_a_share_that_is_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "run", tmp_path / "none.yaml", f"--fail-over={text}") == 2
    said = capsys.readouterr().err.strip()
    shown = text or "''"
    assert (
        said
        == f"error: --fail-over: {shown}: is no share of the rows; write a percentage, 0.1%, or a number from 0 to 1"
    )


def test_the_share_is_told_in_words() -> None:
    record = open_run(str(Path(__file__).parent / "earlier" / "run")).record
    assert record.counts is not None
    told = {
        (1000, 998): "998 of 1,000 rows scored; 0.2 % without a score: 2 no_target_tokens",
        (1, 1): "1 of 1 row scored",
        (3, 0): "0 of 3 rows scored; 100 % without a score: 3 no_target_tokens",
        (10**7, 10**7 - 1): "9,999,999 of 10,000,000 rows scored; 1e-05 % without a score: 1 no_target_tokens",
    }
    for (rows, fine), line in told.items():
        record.counts = record.counts.model_copy(
            update={"rows": rows, "status": {"ok": fine, "no_target_tokens": rows - fine}}
        )
        assert scored(record) == line
        require_scores(record, None)
        require_scores(record, 1.0)
        if fine < rows:
            with pytest.raises(RunFailedError, match=f"{rows - fine:,} of {rows:,}"):
                require_scores(record, 0.0)
    with pytest.raises(RequestError, match="a number from 0 to 1, or null"):
        attribute({}, **{"results.most_bad_rows": "0.1%", "model": {"base": "b", "adapter": "a"}, "output": "o",
                         "train": {"path": "a"}, "queries": {"path": "b"}})  # fmt: skip
