"""Pipes, sockets and devices where a file should be: one line, whoever would have opened them, and no waiting."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from datainf_ray.common.regular import local_path
from tests import tiny
from tests.runs_of import COMMAND

Place = Callable[[Path], dict[str, str]]


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    path.unlink(missing_ok=True)
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's address has room for some hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(before)


def folder(path: Path) -> None:
    path.mkdir()


def rows_of(folder: Path) -> Path:
    """A folder of rows that has a good file."""
    (folder / "rows").mkdir()
    shutil.copy(folder / "train.jsonl", folder / "rows" / "good.jsonl")
    return folder / "rows"


def alone(make: Callable[[Path], None], name: str = "bad.jsonl", key: str = "train") -> Place:
    def place(folder: Path) -> dict[str, str]:
        make(folder / name)
        return {f"{key}.path": str(folder / name)}

    return place


def among(make: Callable[[Path], None], pattern: str = "") -> Place:
    def place(folder: Path) -> dict[str, str]:
        make(rows_of(folder) / "bad.jsonl")
        return {"train.path": str(folder / "rows" / pattern)}

    return place


def in_model(make: Callable[[Path], None], name: str) -> Place:
    def place(folder: Path) -> dict[str, str]:
        make(folder / name)
        return {}

    return place


CASES: dict[str, tuple[Place, str]] = {
    "a pipe as rows": (alone(pipe), "train.path: {}/bad.jsonl: is a pipe, not a file; save what it gives to a file"),
    "a pipe as queries": (alone(pipe, key="queries"), "queries.path: {}/bad.jsonl: is a pipe"),
    "a pipe of no known kind": (alone(pipe, "bad"), "train.path: {}/bad: is a pipe"),
    "a device": (alone(zero), "train.path: {}/bad.jsonl: is a device"),
    "a compressed device": (alone(zero, "bad.parquet.gz"), "train.path: {}/bad.parquet.gz: is a device"),
    "a socket": (alone(listener), "train.path: {}/bad.jsonl: is a socket"),
    "a file that is an empty folder": (alone(folder), "train.path: {}/bad.jsonl: no data file there"),
    "a pipe in a folder": (among(pipe), "train.path: {}/rows/bad.jsonl: is a pipe"),
    "a device in a glob": (among(zero, "*.jsonl"), "train.path: {}/rows/bad.jsonl: is a device"),
    "a folder in a glob": (among(folder, "*.jsonl"), "{}/rows/bad.jsonl: is a directory with a file's name; add /*"),
    "standard input": (lambda f: {"train.path": "/dev/stdin"}, "train.path: /dev/stdin: is a pipe"),
    "an open pipe": (lambda f: {"train.path": "/dev/fd/0"}, "train.path: /dev/fd/0: is a pipe"),
    "a file URL": (lambda f: {"train.path": f"file://{alone(pipe)(f)['train.path']}"}, "bad.jsonl: is a pipe"),
    "an archive": (lambda f: {"train.path": f"zip://*.jsonl::{alone(pipe)(f)['train.path']}"}, "jsonl: is a pipe"),
    "the base": (lambda f: {"model.base": alone(pipe)(f)["train.path"]}, "model.base: {}/bad.jsonl: is a pipe"),
    "the base's settings": (in_model(pipe, "base/config.json"), "model.base: {}/base/config.json: is a pipe"),
    "the base's tokenizer": (in_model(zero, "base/tokenizer.json"), "model.base: {}/base/tokenizer.json: is a device"),
    "the base's weights": (in_model(zero, "base/model.safetensors"), "base/model.safetensors: is a device"),
    "the adapter's settings": (
        in_model(pipe, "adapter/adapter_config.json"),
        "model.adapter: {}/adapter/adapter_config.json: is a pipe",
    ),
    "the adapter's weights": (in_model(pipe, "adapter/adapter_model.safetensors"), "_model.safetensors: is a pipe"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_file_is_refused_and_not_waited_for(case: str, tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    place, said = CASES[case]
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    asked = place(tmp_path)
    command = [*COMMAND, "plan", str(config), *(f"--set={key}={value}" for key, value in asked.items())]
    read, write = os.pipe()  # as standard input: one that nobody writes into
    try:
        done = subprocess.run(command, stdin=read, capture_output=True, text=True, timeout=60)
    finally:
        os.close(read)
        os.close(write)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said.format(tmp_path) in line


def test_files_that_spark_has_put_into_a_folder_with_a_files_name_are_read(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    from datainf_ray import plan

    rows = rows_of(tmp_path).rename(tmp_path / "rows.jsonl")
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    for path in (rows, tmp_path / "rows.*/*", tmp_path / "ro*/**"):
        assert plan(config, **{"train.path": str(path)}).rows == 40


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("a/b.jsonl", "a/b.jsonl"),
        ("file:///a/b", "/a/b"),
        ("zip://*.jsonl::/a/b.zip", "/a/b.zip"),
        ("s3://a/b", None),
        ("simplecache::s3://a/b", None),
        ("zip://x::memory://b.zip", None),
    ],
)
def test_what_is_read_from_this_machine(reference: str, path: str | None) -> None:
    assert local_path(reference) == path
