"""Runs from a bucket into it, as their users start them, on S3 servers of the tests' own."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
import yaml

from tests import tiny
from tests.runs_of import COMMAND

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class Bucket:
    """A bucket with 200 rows, and runs of them whose sweeps take some seconds."""

    def __init__(self, url: str, folder: Path) -> None:
        self.environment = os.environ | KEYS | {"AWS_ENDPOINT_URL": url, "DATAINF_CACHE": str(folder / "cache")}
        self.s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="testing",
                               aws_secret_access_key="testing")  # fmt: skip
        self.s3.create_bucket(Bucket="runs")
        tiny.write_rows(folder / "train.jsonl", 200, seed=1)
        tiny.write_rows(folder / "queries.jsonl", 4, seed=2)
        config: dict[str, Any] = tiny.configuration(folder, tiny.save_model(folder, "llama"), "")
        for name in ("train", "queries"):
            self.s3.upload_file(str(folder / f"{name}.jsonl"), "runs", f"{name}.jsonl")
            config[name]["path"] = f"s3://runs/{name}.jsonl"
        config["cluster"] |= {"batch_tokens": 1, "checkpoint_seconds": 0}
        config["gradients"] = "recompute"
        self.config = folder / "run.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def start(self, output: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "run", str(self.config), "--set", f"output=s3://runs/{output}"]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)

    def run(self, output: str) -> dict[str, bytes]:
        """A run to its end: its tables."""
        process = self.start(output)
        _, said = process.communicate(timeout=280)
        assert process.returncode == 0, said[-3000:]
        keys = self.keys(output)
        assert not [key for key in keys if "checkpoints" in key]
        return {key: self.read(f"{output}/{key}") for key in keys if key.endswith(".parquet")}

    def until(self, output: str, key: str, process: subprocess.Popen[str]) -> None:
        """Wait until a run has written a file whose name begins so."""
        deadline = time.monotonic() + 200
        while not any(name.startswith(key) for name in self.keys(output)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def keys(self, output: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket="runs", Prefix=f"{output}/").get("Contents", [])
        return sorted(entry["Key"].removeprefix(f"{output}/") for entry in found)

    def read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket="runs", Key=key)["Body"].read())
