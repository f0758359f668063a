"""Paths in any alphabet: a whole run in a directory of such a name, and the commands on it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from datainf_ray import cli, plan
from datainf_ray.common.errors import RequestError
from tests import tiny

NAMES = {
    "cyrillic": "Модель данные",
    "emoji and wildcards": "emoji 🙂 [x] a?b*",
    "signs": "#1 100% %41 $HOME {a},b=c&~'\"\\ é\u0301",
    "chinese": "模型 输出",
    "line break": "new\nline\ttab",
    "first a dash": "-dash",
    "direction": "\u202emark",
    "suffix": "rows.jsonl",
}
LONG = [pytest.param(name, marks=() if k < 3 else pytest.mark.slow) for k, name in enumerate(NAMES)]


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", LONG)
def test_a_whole_run_in_a_directory_of_any_name(
    name: str, tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    place = tmp_path / NAMES[name]
    place.mkdir()
    for part in ("base", "adapter", "queries.jsonl"):
        (tmp_path / part).rename(place / part)
    (place / NAMES[name]).mkdir()
    (tmp_path / "train.jsonl").rename(place / NAMES[name] / f"{NAMES[name]}.jsonl")
    model = tiny_llama | {"base": str(place / "base"), "adapter": str(place / "adapter")}
    config = tiny.configuration(place, model, place / "run", index=True)
    config["train"] = {"path": str(place / NAMES[name])}
    file = place / f"{NAMES[name]}.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)

    def datainf(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["datainf", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        assert not left.value.code, captured.err
        assert "Traceback" not in captured.err
        return str(captured.out)

    datainf("run", file)
    assert json.loads((place / "run" / "run.json").read_text())["state"] == "done"
    rows = json.loads(datainf("top", place / "run", "-k", "3", "--format", "json"))
    assert {row["id"].rpartition("#")[0] for row in rows} == {f"{NAMES[name]}.jsonl"}
    datainf("top", place / "run")
    datainf("report", place / "run")
    datainf("query", place / "run", f"--queries={place / 'queries.jsonl'}", f"--output={place / 'again'}")
    again = json.loads(datainf("top", place / "again", "-k", "3", "--format", "json"))
    assert [row["id"] for row in again] == [row["id"] for row in rows]


@pytest.mark.parametrize("name", ["[x]", "a?b", "*"])
def test_a_directory_that_has_a_wildcard_for_a_name_is_meant_as_it_stands(
    name: str, tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    for other in (name, "x"):
        (tmp_path / other / "deep").mkdir(parents=True)
    shutil.copy(tmp_path / "train.jsonl", tmp_path / name / "deep" / "a.jsonl")
    shutil.copy(tmp_path / "queries.jsonl", tmp_path / "x" / "deep" / "a.jsonl")
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    for pattern in ("deep/*.jsonl", "*/a.jsonl", "**", "deep/a.jsonl"):
        assert plan(config, **{"train.path": str(tmp_path / name / pattern)}).rows == 40
    with pytest.raises(RequestError, match=r"^output: .*lies inside train\.path"):
        plan(config, **{"train.path": str(tmp_path / name), "output": str(tmp_path / name / "run")})


@pytest.mark.parametrize("key", ["train.path", "queries.path", "output", "index"])
def test_a_path_that_would_be_taken_for_several_urls_is_refused(
    key: str, tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    (tmp_path / "a::b").mkdir()
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "a::b" / "x.jsonl")
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    with pytest.raises(RequestError, match=f"^{key}: .*a::b/x.jsonl: has '::' in a path, which joins URLs; rename it"):
        plan(config, **{key: str(tmp_path / "a::b" / "x.jsonl")})
    assert not (tmp_path / "a").exists()


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    name = os.fsdecode(b"\xff.jsonl")
    (tmp_path / "rows").mkdir()
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "rows" / name)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    with pytest.raises(RequestError, match=r"^train.path: .*\\udcff.jsonl: has a name that is not UTF-8; rename it"):
        plan(config, **{"train.path": str(tmp_path / "rows")})
    for key in ("train.path", "output", "model.adapter"):
        with pytest.raises(RequestError, match=f"^{key}: "):
            plan(config, **{key: str(tmp_path / "rows" / name)})
