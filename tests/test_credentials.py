"""Options that open a store: they go with what opens it, and nothing of the process is touched.

Against an S3 server that lets into a bucket only those who have the bucket's own key.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
import s3fs
import yaml
from fsspec.config import conf

import datainf_ray
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.common.storage import StoreError, failing, store_of
from datainf_ray.config import RowsConfig, load_config
from datainf_ray.corpus.chunks import plan_corpus
from datainf_ray.corpus.files import open_file
from datainf_ray.model.files import listing_digest
from datainf_ray.runs.directory import RunDirectory
from tests import tiny
from tests.faults import Guarded, guarded_s3
from tests.runs_of import scores

KEYS = {"mine": "AKIA-MINE-0000", "yours": "AKIA-YOURS-0000"}
SECRET = "wJalrXUtnFEMI-of-both"


@dataclass(frozen=True)
class Scene:
    """Two buckets with the same model and with different rows, which no environment opens."""

    url: str
    guard: Guarded
    folder: Path

    def options(self, bucket: str) -> dict[str, dict[str, Any]]:
        return {"s3": {"key": KEYS[bucket], "secret": SECRET, "client_kwargs": {"endpoint_url": self.url}}}

    def configuration(self, bucket: str, output: str, **more: Any) -> dict[str, Any]:
        at = f"s3://{bucket}"
        model = {"base": f"{at}/base", "adapter": f"{at}/adapter"}
        config = tiny.configuration(self.folder, model, f"{at}/{output}", storage_options=self.options(bucket), **more)
        for name in ("train", "queries"):
            config[name]["path"] = f"{at}/{name}.jsonl"
        return config


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("credentials")
    tiny.save_model(folder, "llama")
    tiny.write_rows(folder / "queries.jsonl", 4, seed=2)
    with guarded_s3(KEYS) as (url, guard):
        for seed, (bucket, key) in enumerate(KEYS.items()):
            given = {"aws_access_key_id": key, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
            client = boto3.client("s3", endpoint_url=url, **given)
            client.create_bucket(Bucket=bucket)
            tiny.write_rows(folder / "train.jsonl", 40, seed=seed)
            for path in [*(folder / "base").iterdir(), *(folder / "adapter").iterdir(), *folder.glob("*.jsonl")]:
                client.upload_file(str(path), bucket, str(path.relative_to(folder)))
            (folder / "train.jsonl").rename(folder / f"{bucket}.jsonl")
        yield Scene(url, guard, folder)


@pytest.fixture
def scene(filled: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """The buckets; and a process whose environment opens nothing, and whose settings of fsspec nobody changes."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else a machine's own are looked for in the network
    monkeypatch.setenv("DATAINF_CACHE", str(tmp_path / "cache"))
    s3fs.S3FileSystem.clear_instance_cache()  # an instance of another test may have had its environment's
    filled.guard.closed.clear()
    filled.guard.refused = 0
    yield filled
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def settled() -> Iterator[Callable[[], int]]:
    """fsspec's settings stay what they are, at every moment; how often that was looked at."""
    before, looks, others, over = copy.deepcopy(conf), 0, [], threading.Event()

    def watch() -> None:
        nonlocal looks
        while not over.wait(0.001):
            looks += 1
            if conf != before:
                others.append(dict(conf))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: looks
    finally:
        over.set()
        thread.join()
    assert not others
    assert conf == before


def test_options_are_taken_by_the_protocols_of_a_url() -> None:
    pytest.importorskip("adlfs")
    before = copy.deepcopy(conf)
    options = {
        "s3": {"key": "A", "secret": "B"},
        "az": {"account_name": "ours", "account_key": "AAAA"},
        "simplecache": {"cache_storage": "/tmp/somewhere"},
        "file": {"auto_mkdir": True},
    }
    for url in ("s3://b/rows", "s3a://b/rows"):
        assert store_of(url, options)[0].storage_options == options["s3"]
    cached, _ = store_of("simplecache::s3://b/rows/*.jsonl", options)
    assert cached.storage[-1] == "/tmp/somewhere"
    assert cached.fs.storage_options == options["s3"]
    assert store_of("/tmp/rows", options)[0].auto_mkdir
    assert store_of("az://c/rows", options)[0].account_name == "ours"
    theirs, _ = store_of("abfss://c@theirs.dfs.core.windows.net/rows", options)  # what the URL says comes first
    assert (theirs.account_name, theirs.account_key) == ("theirs", "AAAA")
    assert not fsspec.url_to_fs("/tmp/rows")[0].auto_mkdir
    assert conf == before
    assert options["s3"] == {"key": "A", "secret": "B"}


def test_the_files_of_a_corpus_take_their_options_with_them(scene: Scene) -> None:
    options = scene.options("mine")
    with settled():
        plain = plan_corpus(RowsConfig(path="s3://mine/train.jsonl"), tiny.task("causal-lm"), "train", options)
        cached = plan_corpus(
            RowsConfig(path="simplecache::s3://mine/tr*.jsonl"), tiny.task("causal-lm"), "train", options
        )
        for corpus in (plain, cached):
            (file,) = pickle.loads(pickle.dumps(corpus)).files
            with open_file(file) as stream:
                assert stream.read() == (scene.folder / "mine.jsonl").read_bytes()
    assert SECRET not in f"{plain!r} {plain} {cached!r}"
    here = plan_corpus(RowsConfig(path=str(scene.folder / "mine.jsonl")), tiny.task("causal-lm"), "train", options)
    bare = plan_corpus(RowsConfig(path=str(scene.folder / "mine.jsonl")), tiny.task("causal-lm"), "train")
    assert here == bare
    assert here.fingerprint() == bare.fingerprint()
    with pytest.raises(RequestError, match=r"^train.path: s3://yours/train.jsonl: cannot be listed: .*Forbidden"):
        plan_corpus(RowsConfig(path="s3://yours/train.jsonl"), tiny.task("causal-lm"), "train", options)


def test_what_was_put_into_a_store_since_is_seen(scene: Scene) -> None:
    """Storage libraries keep listings for as long as the process lives; a session puts an adapter there again."""
    options, at = scene.options("mine"), "s3://mine/since"
    elsewhere = boto3.client("s3", endpoint_url=scene.url, aws_access_key_id=KEYS["mine"], aws_secret_access_key=SECRET)
    rows, digests = [], []
    for number in range(2):
        elsewhere.put_object(Bucket="mine", Key=f"since/{number}.jsonl", Body=b'{"text": "a"}\n')
        elsewhere.put_object(Bucket="mine", Key="since/weights", Body=b"%d" % number)
        rows.append(plan_corpus(RowsConfig(path=at), tiny.task("causal-lm"), "train", options).rows)
        digests.append(listing_digest(at, "model.base", options))
    assert rows == [1, 2]
    assert digests[0] != digests[1]


def test_the_places_of_one_request_are_opened_with_its_options(scene: Scene) -> None:
    """A directory, what lies below it, and the run in it; whoever is sent one keeps the credentials to himself."""
    directory = RunDirectory("s3://mine/places", options=scene.options("mine"))
    directory.write("a", b"1")
    sent = pickle.dumps(directory)
    look = "import pickle, sys; d = pickle.load(sys.stdin.buffer); from datainf_ray.common.redaction import redacted; "
    look += f"print(d.read('a'), redacted({SECRET!r}), {SECRET!r} in repr(d))"
    told = subprocess.run([sys.executable, "-c", look], input=sent, capture_output=True, timeout=100)
    assert told.stdout.decode() == "b'1' *** False\n", told.stderr
    with pytest.raises(RequestError, match=r"there is no run\.json in it"):
        datainf_ray.open_run("s3://mine/places", storage_options=scene.options("mine"))
    with pytest.raises(RequestError, match=r"^run: s3://mine/places: cannot be read: authentication failed: Unable"):
        datainf_ray.open_run("s3://mine/places")


def test_a_configuration_in_a_bucket_is_opened_with_the_options_beside_it(scene: Scene) -> None:
    config = scene.configuration("mine", "nothing")
    options = config.pop("storage_options")
    with store_of("s3://mine/c.yaml", options)[0].open("s3://mine/c.yaml", "w") as file:
        yaml.safe_dump(config, file)
    with settled():
        assert load_config("s3://mine/c.yaml", storage_options=options).output == "s3://mine/nothing"
        apart = {f"storage_options.s3.{name}": value for name, value in options["s3"].items()}
        assert load_config("s3://mine/c.yaml", **apart).storage_options == options
        with pytest.raises(
            RequestError,
            match=r"^config: s3://mine/c.yaml: cannot be read: authentication failed: Unable to locate cred",
        ):
            load_config("s3://mine/c.yaml")
    with pytest.raises(RequestError, match=r"secret is no mapping and has no key 'x'$"):
        load_config(config, storage_options=options, **{"storage_options.s3.secret.x": 1})


def test_a_library_s_own_error_is_told_as_an_operating_system_s_would_be(scene: Scene) -> None:
    directory = RunDirectory("s3://mine/nothing")
    with pytest.raises(StoreError, match=r"^authentication failed: Unable to locate credentials \(cred"):
        directory.read("a")
    with (
        pytest.raises(RunFailedError, match=r"^here: StoreError: authentication failed: Unable to l"),
        failing("here: "),
    ):
        directory.exists("a")


@pytest.mark.parametrize("block", [True, False])
def test_an_output_without_credentials_is_one_line(
    scene: Scene, tiny_llama: dict[str, Any], tmp_path: Path, block: bool
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, "s3://mine/nothing")
    told = r"^output: s3://mine/nothing: cannot be reached: authentication failed: Unable to locate credentials \(cred"
    with pytest.raises(RequestError, match=told), settled():
        datainf_ray.attribute(config, block=block, progress=False)


@pytest.mark.slow
@pytest.mark.cluster
def test_two_runs_with_different_credentials_at_once(scene: Scene, local_ray: None) -> None:
    """In one process; each bucket is open to one of the two alone."""
    configs = [scene.configuration(bucket, "at-once") for bucket in KEYS]
    with ThreadPoolExecutor(2) as threads, settled() as looks:
        runs = list(threads.map(lambda config: datainf_ray.attribute(config, progress=False), configs))
        assert looks() > 100
    assert [run.state for run in runs] == ["done", "done"]
    assert scene.guard.refused == 0
    assert (scores(runs[0]) != scores(runs[1])).all()
    again = datainf_ray.open_run("s3://mine/at-once", storage_options=scene.options("mine"))
    assert (scores(again) == scores(runs[0])).all()
    assert SECRET not in again.record.model_dump_json()
    with pytest.raises(RequestError, match=r"^run: s3://mine/at-once: cannot be read: "):
        datainf_ray.open_run("s3://mine/at-once", storage_options=scene.options("yours"))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.fresh_workers  # a driver that is elsewhere knows nothing of those that wait here, and needs their CPUs
def test_every_door_opens_with_the_options(scene: Scene, local_ray: None) -> None:
    config = scene.configuration("mine", "doors", index=True, index_projection=8)
    with settled():
        assert datainf_ray.plan(config).rows == 40
        findings = datainf_ray.check(config)
        assert all(finding.ok for finding in findings), findings
        run = datainf_ray.attribute(config, progress=False)
        answers = datainf_ray.query(
            run.url, queries="s3://mine/queries.jsonl", output="s3://mine/answers", progress=False,
            storage_options=config["storage_options"],
        )  # fmt: skip
        began = datainf_ray.attribute(config | {"output": "s3://mine/driven"}, block=False)
        assert began.wait(progress=False).state == "done"  # its driver is an actor
    assert scores(answers).shape == scores(run).shape
    assert (scores(began) == scores(run)).all()


_BEHIND = """
import copy, json, sys, time
from fsspec.config import conf
import datainf_ray

before = copy.deepcopy(conf)
run = datainf_ray.attribute(json.loads(sys.argv[1]), block=False)
assert conf == before
while run.state != "running":
    time.sleep(0.1)
    assert conf == before
if sys.argv[2]:
    print("running", flush=True)
try:
    print(run.wait(progress=False).state)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
assert conf == before
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("closed", [False, True])
def test_a_run_in_the_background_has_its_credentials(scene: Scene, closed: bool) -> None:
    """Without a cluster: its driver is a thread. Rows, model and output are in a bucket, `closed` meanwhile."""
    output = f"behind-{closed}"
    config = scene.configuration("mine", output)
    if closed:
        config["cluster"] |= {"batch_tokens": 1, "checkpoint_seconds": 0}
    command = [sys.executable, "-c", _BEHIND, json.dumps(config), "closed" if closed else ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if closed:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        scene.guard.closed.add("mine")
    said, wrong = process.communicate(timeout=250)
    assert process.returncode == 0, wrong
    assert SECRET not in said + wrong
    if closed:
        assert said.startswith("RunFailedError: "), said
        assert said.count("\n") == 1
        assert "Forbidden" in said or "Access Denied" in said or "made to fail" in said
    else:
        assert said == "done\n", wrong
        assert datainf_ray.open_run(f"s3://mine/{output}", scene.options("mine")).state == "done"
