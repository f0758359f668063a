"""No place that a request writes is in the way of one that it reads, and nothing of others is touched."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import begin_index
from datainf_ray.runs.record import write_record
from datainf_ray.session.execute import _begun
from datainf_ray.session.plan import plan
from tests import tiny

READ = ("model.adapter", "model.base", "train.path", "queries.path")
WRITTEN = ("output", "index")
RELATIONS: dict[str, Callable[[Path], Path]] = {
    "is": lambda place: place,
    "holds": lambda place: place.parent,
    "lies inside": lambda place: place / "in" / "there",
}
#: The same place by another name.
SPELLINGS: dict[str, Callable[[Path], str]] = {
    "plain": str,
    "a slash": lambda path: f"{path}/",
    "file://": lambda path: f"file://{path}",
    "dots": lambda path: f"{path.parent}/x/../{path.name}",
    "relative": os.path.relpath,
    "a link": lambda path: str(_link(path)),
}


def _link(path: Path) -> Path:
    link = path.parent.parent / f"link-to-{path.parent.name}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.parent)
    return link / path.name


@pytest.fixture
def request_of(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """A configuration whose places are each a folder in a folder of its own; afterwards all is as it was."""
    made = tiny.save_model(tmp_path / "made", "llama")
    places = {}
    for key in READ:
        name = key.replace(".", "-")
        place = tmp_path / "places" / f"{name}-in" / name
        place.parent.mkdir(parents=True)
        if key.startswith("model"):
            shutil.copytree(made[key.removeprefix("model.")], place)
        else:
            place.mkdir()
            tiny.write_rows(place / "part-000000.jsonl", 5, seed=1)
        places[key] = place
    before: list[dict[str, str]] = []

    def configuration(**changes: str) -> dict[str, Any]:
        before.append(contents(tmp_path))
        tree = {
            "model": {"base": str(places["model.base"]), "adapter": str(places["model.adapter"])},
            "train": {"path": str(places["train.path"])},
            "queries": {"path": str(places["queries.path"])},
            "output": str(tmp_path / "runs" / "one"),
        }
        return tree | changes

    configuration.places = places  # type: ignore[attr-defined]
    yield configuration
    assert all(contents(tmp_path) == files for files in before[:1])


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by what is in it."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("read", "written", "relation"), list(itertools.product(READ, WRITTEN, RELATIONS)))
def test_what_is_written_is_apart_from_what_is_read(request_of: Any, read: str, written: str, relation: str) -> None:
    place = RELATIONS[relation](request_of.places[read])
    for spelt in SPELLINGS.values():
        (place.parent / "x").mkdir(parents=True, exist_ok=True)
        with pytest.raises(RequestError, match=f"^{written}: .*{relation}.*{read}"):
            prepare(load_config(request_of(**{written: spelt(place)})))


@pytest.mark.parametrize("command", [prepare, plan])
def test_rows_below_the_output_are_never_listed(request_of: Any, command: Any) -> None:
    """By patterns: what the run writes would be among the rows when it is taken up again."""
    rows = request_of.places["train.path"]
    for pattern, fine in (("**/*.jsonl", False), ("*.jsonl", True), ("*/*.parquet", False), ("**", False)):
        config = request_of(output=str(rows / "run"))
        config["train"] = {"path": [str(rows / "part-000000.jsonl"), f"{rows}/{pattern}"]}
        if pattern == "*/*.parquet":
            (rows / "more").mkdir()
            shutil.copy(rows / "part-000000.jsonl", rows / "more" / "x.jsonl")
            config["train"]["path"][1] = f"{rows}/*/*"
        if fine:
            prepare(load_config(config))
            shutil.rmtree(rows / "run", ignore_errors=True)
        else:
            with pytest.raises(RequestError, match=r"^output: .*its files would be taken for rows: train\.path is"):
                command(load_config(config))
        shutil.rmtree(rows / "more", ignore_errors=True)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize(
    "foreign", ["top.parquet", "checkpoints/last/a.bin", "part-000000.parquet", "run.jsonl", "a/b"]
)
def test_a_place_with_something_else_in_it_is_refused(
    request_of: Any, tmp_path: Path, written: str, foreign: str
) -> None:
    file = tmp_path / "theirs" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    with pytest.raises(RequestError, match=f"^{written}: .*theirs: is not empty and holds no"):
        prepare(load_config(request_of(**{written: str(tmp_path / "theirs")})))


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"format": 1}', b"\xff", b"", None])
def test_a_run_json_that_is_not_ours_is_refused(request_of: Any, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "theirs" / "run.json"
    file.parent.mkdir()
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(RequestError, match=r"^output: .*use") as refused:
        prepare(load_config(request_of(output=str(file.parent))))
    assert "\n" not in str(refused.value)


def test_hidden_files_of_others_do_not_count_and_stay(request_of: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in (".gitkeep", ".a.tmp", ".x.0123456789abcdef0123456789abcdef.tmp"):
        (tmp_path / "mine" / name).write_text("theirs")
    prepare(load_config(request_of(output=str(tmp_path / "mine"))))


@pytest.mark.parametrize("where", ["", "examples", "checkpoints", "events/x", "checkpoints/sums", ".datainf"])
def test_an_index_is_not_among_the_runs_own_files(request_of: Any, tmp_path: Path, where: str) -> None:
    for spelt in (str, lambda path: f"file://{path}"):
        output = tmp_path / "runs" / "one"
        with pytest.raises(RequestError, match=r"^index: .*(is the output itself|is among the run's own files)"):
            prepare(load_config(request_of(index=spelt(output / where))))
    with pytest.raises(RequestError, match=r"^index: .*holds the output"):
        prepare(load_config(request_of(index=str(output.parent))))


def test_an_index_may_be_in_its_own_run_or_elsewhere(request_of: Any, tmp_path: Path) -> None:
    for index in (True, str(tmp_path / "runs" / "one" / "gradients"), str(tmp_path / "indexes" / "one")):
        assert prepare(load_config(request_of(index=index))).written_index is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "places"]  # nothing stays


def test_no_run_and_no_index_lies_inside_another(request_of: Any, tmp_path: Path) -> None:
    job = prepare(load_config(request_of(output=str(tmp_path / "other"))))
    other = RunDirectory(tmp_path / "other")
    write_record(other, _begun(job))
    begin_index(RunDirectory(tmp_path / "gradients", "index"), "f00", {"chunk_rows": 1})
    for written, inside in itertools.product(WRITTEN, ("other/examples", "other/a/b/c", "gradients/a")):
        with pytest.raises(RequestError, match=f"^{written}: .*lies inside another run or gradient index: .*"):
            prepare(load_config(request_of(**{written: str(tmp_path / inside)})))
    with pytest.raises(RequestError, match=r"^index: .*holds the gradient index of another run"):
        prepare(load_config(request_of(index=str(tmp_path / "gradients"))))
    for folder in ("other", "gradients"):
        shutil.rmtree(tmp_path / folder)


@pytest.mark.cluster
def test_places_in_a_bucket(bucket: str, tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(str(tmp_path / "adapter"), f"{bucket}/ft/adapter", recursive=True)
    fs.put(str(tmp_path / "train.jsonl"), f"{bucket}/rows/train.jsonl")
    tree = {
        "model": {**tiny_llama, "adapter": f"{bucket}/ft/adapter"},
        "train": {"path": f"{bucket}/rows"},
        "queries": {"path": str(tmp_path / "queries.jsonl")},
    }
    before = fs.find(bucket)
    for output, said in (
        (f"{bucket}/ft/adapter", r"is what the request reads as model\.adapter"),
        (f"{bucket}/ft", r"holds what the request reads as model\.adapter"),
        (f"s3a{bucket[2:]}/ft/adapter/run", r"lies inside model\.adapter"),
        (f"{bucket}/rows/run", r"lies inside train\.path"),
        (f"{bucket}", r"holds what the request reads"),
    ):
        with pytest.raises(RequestError, match=f"^output: .*{said}"):
            prepare(load_config(tree, output=output))
    fs.pipe(f"{bucket}/theirs/top.parquet", b"x")
    with pytest.raises(RequestError, match=r"is not empty and holds no run \(no run\.json\): top\.parquet"):
        prepare(load_config(tree, output=f"{bucket}/theirs"))
    assert fs.find(bucket) == sorted([*before, f"{bucket[5:]}/theirs/top.parquet"])
    prepare(load_config(tree, output=f"{bucket}/rows-run"))  # begins as a place does, and lies beside it
