"""Credentials: given in the configuration they open the stores, and nobody is told of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import boto3
import pytest

import datainf_ray
from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.redaction import HIDDEN, redacted, redacted_tree
from datainf_ray.config import load_config
from tests import tiny
from tests.logs import logged
from tests.runs_of import COMMAND

SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://user:pass-word@host/rows.jsonl", f"s3://user:{HIDDEN}@host/rows.jsonl"),
        ("https://a.net/c/r.csv?sv=2024&sig=ab%2Fc&se=9", f"https://a.net/c/r.csv?sv=2024&sig={HIDDEN}&se=9"),
        ("https://s3.net/r?X-Amz-Signature=abc&x=1", f"https://s3.net/r?X-Amz-Signature={HIDDEN}&x=1"),
        ("AccountName=a;AccountKey=abc==;X=1", f"AccountName=a;AccountKey={HIDDEN};X=1"),
        ("s3://bucket/rows?.jsonl and 10:30 @ noon", "s3://bucket/rows?.jsonl and 10:30 @ noon"),
    ],
)
def test_what_signs_an_address_is_not_told(text: str, told: str) -> None:
    assert redacted(text) == told
    assert redacted_tree({"path": [text], "n": 1}) == {"path": [told], "n": 1}


def test_credentials_of_the_environment_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert one_line(OSError(f"no access with\n {SECRET}")) == f"no access with {HIDDEN}"
    assert str(RequestError("train.path", SECRET, SECRET)) == f"train.path: {HIDDEN}: {HIDDEN}"


def test_the_key_in_a_connection_string_is_not_told_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=a;AccountKey={SECRET};BlobEndpoint=http://b")
    assert redacted(f"signed by {SECRET}") == f"signed by {HIDDEN}"


def test_options_are_in_no_dump_and_in_no_error() -> None:
    given = {"model": {"base": "b", "adapter": "a"}, "train": {"path": "t"}, "queries": {"path": "q"}, "output": "o"}
    config = load_config(given, storage_options={"s3": {"secret": SECRET}})
    assert SECRET not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
    assert load_config(config, seed=1).storage_options == {"s3": {"secret": SECRET}}
    with pytest.raises(RequestError, match=r"^storage_options.s3: a mapping") as error:
        load_config(given, storage_options={"s3": SECRET})
    assert SECRET not in str(error.value)
    with pytest.raises(RequestError, match=r"^storage_options: s33: unknown protocol; did you mean 's3'\?"):
        load_config(given, storage_options={"s33": {}})


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_with_credentials_in_its_configuration(tmp_path: Path, tiny_llama: dict[str, Any], bucket: str) -> None:
    """Rows, model and output in a bucket that only the configuration tells how to open."""
    client = boto3.client("s3")
    for path in [*(tmp_path / "base").iterdir(), *(tmp_path / "adapter").iterdir(), *tmp_path.glob("*.jsonl")]:
        client.upload_file(str(path), "runs", str(path.relative_to(tmp_path)))
    config = tiny.configuration(tmp_path, {}, "s3://runs/out", index="s3://runs/index")
    config["model"] = {name: f"s3://runs/{name}" for name in ("base", "adapter")}
    for name in ("train", "queries"):
        config[name]["path"] = f"s3://runs/{name}.jsonl"
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "key": "AKIA-GIVEN-HERE", "secret": SECRET}
    config["storage_options"] = {"s3": options}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # a short path: Ray puts sockets there
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray:
        environment = bare | {"DATAINF_CACHE": str(tmp_path / "cache"), "RAY_TMPDIR": ray}
        command = [*COMMAND, "run", str(tmp_path / "c.yaml")]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err, logs = logged(process, ray)
        done = subprocess.CompletedProcess(command, process.returncode, out, err)
        assert done.returncode == 0, done.stderr
        assert len(logs) > 10
    wrong = [*command, "--set", "train.path=s3://absent/*.jsonl"]
    refused = subprocess.run(wrong, env=environment, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: train.path: s3://absent/*.jsonl: ")
    said = [done.stderr, done.stdout, refused.stderr, refused.stdout]

    listed = client.list_objects_v2(Bucket="runs")["Contents"]
    written = {e["Key"] for e in listed if e["Key"].startswith(("out/", "index/"))}
    assert {"out/run.json", "out/report.html", "out/top.parquet", "index/index.json"} <= written
    contents = [client.get_object(Bucket="runs", Key=key)["Body"].read() for key in written]
    for secret in (SECRET, options["key"]):
        assert not [text for text in said if secret in text]
        assert not [text for text in contents + logs if secret.encode() in text]

    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        run = datainf_ray.open_run("s3://runs/out", storage_options={"s3": options})
        assert len(run.top()) == 10  # read after the options were left
        assert re.search(r"storage_options", json.dumps(run.config)) is None
