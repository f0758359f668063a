"""Runs whose queries are prompts alone: their pictures are made first, each once, and are the run's queries."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import datainf_ray
from datainf_ray.cluster.orders import worker_spec
from datainf_ray.cluster.picture_orders import PictureOrder
from datainf_ray.cluster.picture_work import make_pictures
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.config import load_config
from datainf_ray.corpus.rows import RowReader
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.curate.content import some_rows
from datainf_ray.curate.source import source_of
from datainf_ray.diffusion.generate import as_png
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from tests import reference
from tests.diffusion import pipelines
from tests.diffusion.test_generate import SEED, STEPS, by_diffusers, pixels, start
from tests.diffusion.test_runs import BAD, QUERIES, ROWS, by_hand, prepared
from tests.interrupting import Interrupter
from tests.runs_of import attribute, scores, status_of, tables

USABLE = [k for k in range(ROWS) if k != BAD]
GENERATE = {"steps": STEPS, "seed": SEED}


def alone(folder: Path, family: str = "sd", **diffusion: Any) -> dict[str, Any]:
    """A configuration whose queries have prompts and no pictures."""
    config = prepared(folder, family, **({"generate": GENERATE} | diffusion))
    table = pq.read_table(folder / "queries.parquet")
    pq.write_table(table.drop_columns("image"), folder / "queries.parquet")
    return config


def made(run: datainf_ray.Run | Path) -> dict[str, bytes]:
    root = run if isinstance(run, Path) else Path(run.url)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / "pictures").rglob("*"))}


def with_made(config: dict[str, Any], run: datainf_ray.Run) -> dict[str, Any]:
    """The configuration with the run's pictures as pictures of the user's own."""
    path = Path(config["queries"]["path"])
    table = pq.read_table(path).append_column("image", pa.array([{"bytes": data} for data in made(run).values()]))
    pq.write_table(table, path.with_name("whole.parquet"))
    return config | {"queries": {"path": str(path.with_name("whole.parquet")), "id": "name"}}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("family", "combine"), [("sd", "paired"), ("sdxl", "mean"), ("sd3", "mean"), ("flux", "mean")])
def test_a_run_of_prompts_is_that_of_the_pictures_it_makes(
    family: str,
    combine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = alone(tmp_path, family, combine=combine)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert status_of(monkeypatch, "run", tmp_path / "run.yaml") == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"2 pictures are made first, of the queries' prompts, in {STEPS} steps each" in said
    run = datainf_ray.open_run(config["output"])
    kept = made(run)
    assert [*kept] == [f"pictures/query-{k:06d}.png" for k in range(QUERIES)]
    for data, row in zip(kept.values(), pq.read_table(config["queries"]["path"]).to_pylist(), strict=True):
        want = by_diffusers(config["model"], family, row["prompt"], start(family, row["name"]), True)
        assert np.array_equal(pixels(data), want)
    digests = {name: known.sha256 for name, known in run.record.pictures.items()}
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in kept.items()}
    whole = with_made(config, run)
    assert reference.worst(scores(run)[USABLE], by_hand(whole, family)) < 1e-4
    if combine == "paired":
        _is_the_same_by_all_ways(run, config, whole, kept, tmp_path)


def _is_the_same_by_all_ways(
    run: datainf_ray.Run, config: dict[str, Any], whole: dict[str, Any], kept: dict[str, bytes], folder: Path
) -> None:
    two = attribute(config | {"output": str(folder / "two"), "cluster": {"max_workers": 2, "chunk_rows": 3}})
    assert tables(two) == tables(run)
    assert made(two) == kept
    given = attribute(whole, **{"output": str(folder / "given"), "diffusion.generate": None})
    assert tables(given) == tables(run)  # made or given: the same pictures are the same queries
    assert not made(given)
    names = [sweep.name for sweep in run.record.sweeps if sweep.name != "curvature again"]
    assert datainf_ray.plan(config).sweeps == names
    shown = [*some_rows(source_of(run).corpus("queries"), [0, 1])]
    assert [row.fields["image"] for row in shown] == [*kept.values()]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_pictures_that_are_kept_are_not_made_again(tmp_path: Path) -> None:
    """Killed while pictures are made, behind them, and in a later sweep."""
    config = alone(tmp_path)
    quiet = attribute(config, output=str(tmp_path / "quiet"))
    for number, (sweep, chunks, there) in enumerate([("pictures", 1, 1), ("queries", 1, 2), ("scores", 1, 2)]):
        output = str(tmp_path / f"cut-{number}")
        with pytest.raises(KeyboardInterrupt):
            execute(prepare(load_config(config, output=output)), Interrupter(sweep, chunks))
        assert len(made(Path(output))) >= there
        before = {name: (Path(output) / name).stat().st_mtime_ns for name in made(Path(output))}
        run = attribute(config, output=output)
        assert tables(run) == tables(quiet)
        assert made(run) == made(quiet)
        assert {name: (Path(output) / name).stat().st_mtime_ns for name in before} == before
        assert [sweep.name for sweep in run.record.sweeps] == [sweep.name for sweep in quiet.record.sweeps]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_the_kept_picture_is_the_query_and_a_lost_one_begins_the_run_again(tmp_path: Path) -> None:
    config = alone(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(load_config(config)), Interrupter("pictures", 2))
    shutil.copytree(tmp_path / "run", tmp_path / "foreign")
    fingerprint = json.loads((tmp_path / "run" / "run.json").read_text())["fingerprint"]
    first = tmp_path / "run" / "pictures" / "query-000000.png"
    first.write_bytes(as_png(Image.new("RGB", (16, 16), (200, 30, 90)), f"{fingerprint} 0"))  # another device's
    shutil.copytree(tmp_path / "run", tmp_path / "later")
    run = attribute(config)
    assert reference.worst(scores(run)[USABLE], by_hand(with_made(config, run), "sd")) < 1e-4

    config |= {"output": str(tmp_path / "later")}
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(load_config(config)), Interrupter("scores", 2))
    (tmp_path / "later" / "pictures" / "query-000000.png").unlink()
    watcher = Interrupter()
    later = execute(prepare(load_config(config)), watcher)
    assert any("query-000000.png is not the picture that the run had made; it begins again" in s for s in watcher.said)
    plain = attribute(config, output=str(tmp_path / "plain"))
    assert tables(later) == tables(plain) != tables(run)

    picture = tmp_path / "plain" / "pictures" / "query-000001.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-20])  # of a run that is done
    assert tables(attribute(config, output=str(tmp_path / "plain"))) == tables(later)
    assert picture.read_bytes() == whole

    (tmp_path / "foreign" / "pictures" / "query-000001.png").write_bytes(pipelines.picture(3))
    with pytest.raises(RunFailedError, match=r"query-000001.png: is no picture that this run has made; move it away"):
        attribute(config, output=str(tmp_path / "foreign"))
    assert (tmp_path / "foreign" / "pictures" / "query-000001.png").read_bytes() == pipelines.picture(3)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_finished_run_answers_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = alone(tmp_path)
    pictured = with_made(config, attribute(config, output=str(tmp_path / "direct")))
    run = attribute(
        pictured, output=str(tmp_path / "indexed"), index=True, index_dtype="float32", **{"diffusion.generate": None}
    )
    path, answer = config["queries"]["path"], tmp_path / "answer"
    with pytest.raises(RequestError, match=r"^queries.columns: the rows have prompts \(prompt\) and no pictures; set "):
        datainf_ray.query(run.url, queries=path, output=str(answer), progress=False)
    asked = ["--set", f"diffusion.generate={{steps: {STEPS}, seed: {SEED}}}"]
    assert status_of(monkeypatch, "query", run.url, "--queries", path, "--output", answer, *asked) == 0
    got = datainf_ray.open_run(str(answer))
    assert reference.worst(scores(got)[USABLE], scores(run)[USABLE]) < 1e-5
    assert made(got).keys() == made(tmp_path / "direct").keys()
    assert [pixels(a).tobytes() for a in made(got).values()] == [
        pixels(a).tobytes() for a in made(tmp_path / "direct").values()
    ]
    assert got.record.start_loss is None  # of grey pictures it would say nothing
    # A run whose own queries were made answers pictures, and more prompts.
    made_run = attribute(config, output=str(tmp_path / "indexed-2"), index=True, index_dtype="float32")
    for number, queries in enumerate([pictured["queries"]["path"], path]):
        more = datainf_ray.query(made_run.url, queries=queries, output=str(tmp_path / f"more-{number}"), progress=False)
        assert reference.worst(scores(more)[USABLE], scores(run)[USABLE]) < 1e-5
        assert len(made(more)) == number * QUERIES


def test_what_is_said_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = alone(tmp_path)
    plan = datainf_ray.plan(config)
    assert plan.making == f"2 pictures are made first, of the queries' prompts, in {STEPS} steps each"
    assert plan.sweeps[0] == "pictures"
    more = datainf_ray.plan(config, **{"diffusion.generate.steps": 40})
    assert more.flops > plan.flops
    assert (
        datainf_ray.plan(config, **{"queries.path": config["train"]["path"], "diffusion.generate": None}).making is None
    )
    seen = datainf_ray.tokens(config, queries=True)
    assert [row.rule for row in seen] == ["the noise of the picture that is made of it first, at every timestep"] * 2
    job = prepare(load_config(config))
    assert {example.id.partition("-")[0] for example in job.sample} == {"row"}
    assert all(example.values["pixels"].std() > 0 for example in job.sample)  # none of the grey ones
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert status_of(monkeypatch, "plan", tmp_path / "run.yaml") == 0
    assert "pictures      2 pictures are made first" in capsys.readouterr().out


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_the_check_says_so_and_makes_none(tmp_path: Path) -> None:
    config = alone(tmp_path)
    findings = datainf_ray.check(config)
    assert all(finding.ok for finding in findings), findings
    assert "2 pictures are made first" in findings[0].detail
    assert not (tmp_path / "run" / "pictures").exists()


def test_rows_of_which_no_picture_can_be_made(tmp_path: Path) -> None:
    """The others have theirs; what is not a row's affair is raised."""
    config = alone(tmp_path)
    prompts = ["a dog", None, "bad", "a cat", "a bird"]
    names = [f"../{k}" for k in range(len(prompts))]  # which are in no path
    pq.write_table(pa.table({"name": names, "prompt": prompts}), config["queries"]["path"])
    job = prepare(load_config(config))
    spec, queries = replace(worker_spec(job), fingerprint="f"), job.corpora["queries"]

    def maker(model: Any, tokenizer: Any, facts: Any) -> Any:
        def make(fields: Any, mark: str) -> bytes:
            if fields["prompt"] == "bad":
                raise ValueError("too bad")
            if fields["prompt"] == "a bird":
                raise torch.OutOfMemoryError("no room")
            return f"{fields['id']} {mark}".encode()

        return make

    given = replace(job.task, maker=maker), torch.nn.Identity(), None, spec
    report, table = make_pictures(*given, PictureOrder(rows_chunk(queries, [0, 1, 2, 3]), crashed=(3,)), 0.0)
    assert table.to_pylist() == [{"row": 0, "detail": None}, {"row": 2, "detail": "ValueError: too bad"}]
    assert report.rows == 4
    assert made(Path(config["output"])) == {"pictures/query-000000.png": b"../0 f 0"}
    with pytest.raises(torch.OutOfMemoryError):
        make_pictures(*given, PictureOrder(rows_chunk(queries, [4])), 0.0)
    rows = RowReader(spec.corpora["queries"]).read(rows_chunk(queries, range(5)))
    lost = "image is made of its prompt, query-00000{}.png, and there is no such file"
    assert [row.problem for row in rows] == [None, "prompt is null", *(lost.format(k) for k in (2, 3, 4))]


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    config = alone(tmp_path)
    (tmp_path / "whole").mkdir()
    pictured = prepared(tmp_path / "whole", "sd", generate=GENERATE)
    said = {
        "queries.columns: the rows have prompts (prompt) and no pictures; set diffusion.generate: {steps: 30}":
            (config, {"diffusion.generate": None}),
        "diffusion.generate: has no effect: the queries have pictures, image; leave it out, or take their prompts":
            (pictured, {}),
        "train.columns: none of name, prompt is what the task needs; task text-to-image takes prompt+image":
            (config, {"train.path": config["queries"]["path"]}),
        "diffusion.resolution: 12: pictures are made at multiples of 8; use 8": (config, {"diffusion.resolution": 12}),
        "diffusion.generate.steps: 2: its PNDMScheduler cannot take so many": (config, {"diffusion.generate.steps": 2}),
    }  # fmt: skip
    for line, (asked, more) in said.items():
        with pytest.raises(RequestError) as caught:
            datainf_ray.plan(asked, **more)
        assert str(caught.value).startswith(line), str(caught.value)
        assert "\n" not in str(caught.value)
    assert datainf_ray.plan(pictured, **{"queries.columns": {"prompt": "prompt"}}).making is not None


def test_guidance_that_the_base_does_not_take_is_refused(tmp_path: Path) -> None:
    config = alone(tmp_path, "flux")
    file = tmp_path / "base" / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_embeds": False}))
    with pytest.raises(RequestError, match=r"^diffusion.generate.guidance: 2.0: has no effect: .* takes no guidance"):
        datainf_ray.plan(config, **{"diffusion.generate.guidance": 2.0})
