"""Google Cloud Storage and Azure Blob Storage: run directories there, and whole runs from bucket to bucket.

Against fake-gcs-server and Azurite (see tests/stores.py for what they need).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
import pytest
import yaml

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.files import open_file
from datainf_ray.corpus.find import find_files
from datainf_ray.model.files import local_folder
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import matrix
from tests import stores, tiny
from tests.logs import logged
from tests.runs.test_directory import (  # noqa: F401 - what a run directory promises, here with the `directory` below
    test_a_folder_is_removed_whole_and_alone,
    test_a_missing_file_is_a_file_not_found_error,
    test_a_pickled_directory_is_the_same_place,
    test_a_stream_becomes_a_file_at_its_end_and_none_if_it_breaks,
    test_checking_that_a_directory_is_writable_leaves_nothing,
    test_commit_creates_once_and_what_was_there_first_stays,
    test_files_whose_names_begin_with_a_dot_are_not_listed,
    test_json_and_tables_come_back,
    test_of_many_that_commit_at_once_one_wins,
    test_what_is_written_is_read_and_listed,
)
from tests.runs_of import COMMAND, tables
from tests.stores import Store

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", params=["gs", "az"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    serve = {"gs": stores.gcs, "az": stores.azure}[request.param]
    with serve(tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def directory(store: Store, request: pytest.FixtureRequest) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory(f"{store.url}/{request.node.originalname}", options=store.options)


@dataclass(frozen=True)
class Scene:
    """A model and rows, here and in a bucket; and what a run of them here has found."""

    folder: Path
    store: Store
    here: dict[str, bytes]

    def configuration(self, where: str, output: str) -> dict[str, Any]:
        return configuration(where, f"{self.store.url}/{output}", f"{self.store.url}/{output}-index")

    def start(self, config: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen[str]:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        return subprocess.Popen(
            [*COMMAND, "run", str(path)],
            env=self.store.environment(DATAINF_CACHE=str(self.folder / "cache"), **environment),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def command(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        opened = self.store.given if environment is None else environment
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.store.environment(DATAINF_CACHE=str(self.folder / "cache"), **opened),
            capture_output=True, text=True, timeout=250,
        )  # fmt: skip

    def files(self, output: str) -> dict[str, bytes]:
        root = f"{self.store.url.partition('://')[2]}/{output}"
        fs = self.store.fs
        return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}

    def tables(self, output: str) -> dict[str, bytes]:
        return {name: data for name, data in self.files(output).items() if name.endswith(".parquet")}


def configuration(where: str, output: str, index: str) -> dict[str, Any]:
    """A run whose sweeps take some seconds: all that it needs is at `where`."""
    return {
        "model": {"base": f"{where}/base", "adapter": f"{where}/adapter", "task": "causal-lm"},
        "train": {"path": [f"{where}/rows/*.parquet", f"{where}/rows/*.jsonl"], "id": "name"},
        "queries": {"path": f"{where}/queries.jsonl", "id": "name"},
        "cluster": {"chunk_rows": 8, "batch_tokens": 1, "max_workers": 1, "checkpoint_seconds": 0},
        "gradients": "recompute",
        "index": index,
        "output": output,
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, 40 rows as Parquet, 40 as JSONL, queries, and the run of them."""
    folder = tmp_path_factory.mktemp("here")
    tiny.save_model(folder, "llama")
    (folder / "rows").mkdir()
    pa.parquet.write_table(
        pa.json.read_json(tiny.write_rows(folder / "first.jsonl", 40, seed=1)), folder / "rows" / "a.parquet"
    )
    tiny.write_rows(folder / "rows" / "b.jsonl", 40, seed=2)
    tiny.write_rows(folder / "queries.jsonl", 4, seed=3)
    config = configuration(str(folder), str(folder / "run"), str(folder / "run-index"))
    datainf_ray.attribute(config, progress=False)
    return folder


@pytest.fixture(scope="module")
def scene(here: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    fs = store.fs
    for path in here.rglob("*"):
        name = path.relative_to(here)
        if path.is_file() and name.parts[0] in ("base", "adapter", "rows", "queries.jsonl"):
            fs.put_file(str(path), f"{store.url}/given/{name}")
    return Scene(tmp_path_factory.mktemp("scene"), store, tables(here / "run"))


@pytest.fixture(scope="module")
def killed(scene: Scene) -> str:
    """The URL of a run with the environment's credentials, done although its driver was killed."""
    config = scene.configuration(f"{scene.store.url}/given", "killed")
    process = scene.start(config, scene.store.given)
    try:
        deadline = time.monotonic() + 200
        while not any("checkpoints/scores/chunk-" in path for path in scene.store.fs.find(config["output"])):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert "top.parquet" not in scene.files("killed")
    process = scene.start(config, scene.store.given)
    _, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert "80 rows scored" in said
    return str(config["output"])


@pytest.mark.slow
def test_a_run_from_bucket_to_bucket_may_be_killed(scene: Scene, killed: str) -> None:
    assert scene.tables("killed") == scene.here
    assert not [name for name in scene.files("killed") if "checkpoints" in name]
    shown = scene.command("top", killed, "-k", "3", "--format", "json")
    assert shown.returncode == 0, shown.stderr
    run = datainf_ray.open_run(killed, storage_options=scene.store.options)
    assert yaml.safe_load(shown.stdout) == run.top(query=0, k=3).to_pylist()


@pytest.mark.slow
def test_new_queries_are_answered_from_an_index_in_a_bucket(scene: Scene, killed: str) -> None:
    queries, output = f"{scene.store.url}/given/queries.jsonl", f"{scene.store.url}/answers"
    answered = scene.command("query", killed, "--queries", queries, "--output", output)
    assert answered.returncode == 0, answered.stderr
    run, answers = (datainf_ray.open_run(url, storage_options=scene.store.options) for url in (killed, output))
    assert {sweep["source"] for sweep in answers.summary()["sweeps"][1:]} == {"index"}
    found, known = (matrix(r.scores()["influence"]) for r in (answers, run))
    assert np.abs(found - known).max() < 0.02 * np.abs(known).max()  # the index holds 16 bits of each number


@pytest.mark.slow
def test_a_run_with_credentials_in_its_configuration_tells_them_to_nobody(scene: Scene) -> None:
    config = scene.configuration(f"{scene.store.url}/given", "given-options")
    config["storage_options"] = scene.store.options
    # a short path: Ray puts sockets there
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray:
        process = scene.start(config, {"RAY_TMPDIR": ray})
        out, err, logs = logged(process, ray)
        said = out + err
        assert process.returncode == 0, said
        assert len(logs) > 10
    written = scene.files("given-options")
    assert scene.tables("given-options") == scene.here
    assert "run.json" in written
    if scene.store.secret:
        everything = [said.encode(), *logs, *written.values(), *scene.files("given-options-index").values()]
        assert not [text[:200] for text in everything if scene.store.secret.encode() in text]


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_one_line(scene: Scene) -> None:
    (scene.folder / "c.yaml").write_text(yaml.safe_dump(scene.configuration(f"{scene.store.url}/given", "nothing")))
    absent = scene.store.url.replace("runs", "absent") + "/a"
    for key in ("train.path", "output"):
        refused = scene.command("run", str(scene.folder / "c.yaml"), "--set", f"{key}={absent}")
        assert refused.stderr.startswith(f"error: {key}: {absent}")
        assert refused.stderr.count("\n") == 1
        assert refused.returncode == 2
    with pytest.raises(RequestError, match=rf"^model.base: {absent}: ") as caught:
        local_folder(absent, "model.base", options=scene.store.options)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_is_one_line(scene: Scene) -> None:
    if not scene.store.secret:
        pytest.skip("this server lets everybody in")
    wrong = scene.store.wrong()
    (scene.folder / "c.yaml").write_text(yaml.safe_dump(scene.configuration(f"{scene.store.url}/given", "nothing")))
    refused = scene.command("run", str(scene.folder / "c.yaml"), environment=wrong.given)
    assert refused.stderr.startswith(("error: output: ", "error: train.path: "))
    assert "authenticate" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert refused.returncode == 2
    options = wrong.options
    for key, ask in {
        "train.path": lambda: find_files([f"{wrong.url}/given/rows/*.jsonl"], "train.path", options),
        "model.base": lambda: local_folder(f"{wrong.url}/given/base", "model.base", options=options),
        "output": lambda: RunDirectory(f"{wrong.url}/nothing", options=options).check_writable(),
    }.items():
        with pytest.raises(RequestError, match=rf"^{key}: {wrong.url}/.*: .*authenticate") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_credentials_that_are_none_are_one_line(store: Store) -> None:
    protocol = store.url.partition("://")[0]
    nonsense = {"gs": {"token": {"client_email": "x"}}, "az": {"connection_string": "nonsense"}}
    options = {protocol: nonsense[protocol]}
    for key, ask in {
        "train.path": lambda: find_files([f"{store.url}/a"], "train.path", options),
        "model.base": lambda: local_folder(f"{store.url}/a", "model.base", options=options),
        "output": lambda: RunDirectory(f"{store.url}/a", options=options),
    }.items():
        told = rf"^{key}: {store.url}/a: cannot be opened: .* storage_options\.{protocol}"
        with pytest.raises(RequestError, match=told):
            ask()


def test_an_account_may_stand_in_the_address(scene: Scene) -> None:
    if not scene.store.url.startswith("az"):
        pytest.skip("only Azure's addresses have accounts")
    where = f"abfss://runs@{stores.ACCOUNT}.dfs.core.windows.net/given/rows"
    (file,) = find_files([f"{where}/*.jsonl"], "train.path", scene.store.options)
    assert file.path == f"{where}/b.jsonl"
    with open_file(file) as stream:
        assert len(stream.readlines()) == 40


@pytest.mark.parametrize(("protocol", "module", "extra"), [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")])
@pytest.mark.parametrize("key", ["train.path", "model.adapter", "output"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, key: str, protocol: str, module: str, extra: str
) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 4, seed=1)
    tiny.write_rows(tmp_path / "queries.jsonl", 2, seed=2)
    config = tiny.configuration(tmp_path, tiny.save_model(tmp_path, "llama"), tmp_path / "run")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    absent = f"import sys; sys.modules[{module!r}] = None; from datainf_ray.cli import main; main()"
    asked = f"{key}={protocol}://b/a"
    refused = subprocess.run(
        [sys.executable, "-c", absent, "run", str(tmp_path / "c.yaml"), "--set", asked],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    remedy = f"pip install 'datainf-ray[{extra}]'"
    assert refused.stderr == f"error: {asked.replace('=', ': ')}: needs a package that is not installed; {remedy}\n"
    assert refused.returncode == 2
