"""What the report's page says is what the commands do: the command of its verdict, and influence by a column."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from datainf_ray.curate.by import write_by
from datainf_ray.runs.report.page import write_report
from tests.curate.conftest import Make, rows_of, write
from tests.runs_of import status_of


def test_the_verdicts_command_drops_the_rows_that_the_page_is_of(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    influence = np.random.default_rng(0).normal(size=(300, 5))
    planted = [7, 40, 41, 99, 120, 250, 288]
    influence[planted] = -20 - np.random.default_rng(1).uniform(0, 4, (7, 5))
    write(tmp_path / "it's mine.jsonl", rows_of(300))
    run = make("it's mine.jsonl", influence, "a run", queries_are="mistakes", results={"by": "topic"})
    write_by(run, pytest.fail)
    page = Path(write_report(run)).read_text(encoding="utf-8")
    assert "<h2>7 helpful rows stand out: " in page
    (written,) = re.findall(r'<pre class="command">(.*?)</pre>\s*<p>.*?<code>(--to .*?)</code>', page, re.DOTALL)
    words, option = (shlex.split(html.unescape(re.sub("</?span>", "", one))) for one in written)
    assert words[0] == "datainf"
    assert status_of(monkeypatch, *words[1:], "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(row["row"] for row in told["first"]) == planted
    assert (told["dropped"], told["to"]) == (7, None)
    assert option == ["--to", "clean-it's mine.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert status_of(monkeypatch, *[one for one in words[1:] if one != "--dry-run"], *option) == 0
    left = [json.loads(line)["n"] for line in Path("clean-it's mine.jsonl").read_bytes().splitlines()]
    assert left == [n for n in range(300) if n not in planted]
    # by the column
    of = page[page.index("<h2>By <bdi>topic</bdi>") :]
    blame = run.by("topic", "all").to_pylist()
    largest = max(blame, key=lambda row: abs(row["sum"]))
    value, total = re.findall(r'class="named"><bdi>(.*?)</bdi>.*?class="n helpful">(.*?)<span', of, re.DOTALL)[0]
    assert value == largest["value"]
    assert float(total.replace("−", "-")) == pytest.approx(largest["sum"], rel=0.01)
