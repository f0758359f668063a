"""A model that lies elsewhere is fetched once per machine, however many workers want it at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datainf_ray.common.errors import RequestError
from datainf_ray.model.files import local_folder

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "deep/tokenizer.json": b"[]"}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is copied from memory://models, slowly."""
    monkeypatch.setenv("DATAINF_CACHE", str(tmp_path))
    fs = MemoryFileSystem()
    for name, content in FILES.items():
        fs.pipe_file(f"/models/base/{name}", content)
    copied: list[str] = []
    plain = MemoryFileSystem.get_file

    def get_file(self: MemoryFileSystem, path: str, *values: Any, **more: Any) -> None:
        copied.append(path)
        time.sleep(0.1)
        plain(self, path, *values, **more)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    yield copied
    fs.rm("/models", recursive=True)


def test_workers_of_one_machine_share_a_copy(fetched: list[str]) -> None:
    with ThreadPoolExecutor(4) as workers:
        folders = set(workers.map(lambda _: local_folder("memory://models/base", "model.base"), range(4)))
    (folder,) = folders
    assert {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()} == FILES
    assert len(fetched) == len(FILES)


def test_the_driver_fetches_no_weights(fetched: list[str]) -> None:
    folder = local_folder("memory://models/base", "model.base", weights=False)
    assert not list(Path(folder).glob("*.safetensors"))
    assert len(fetched) == len(FILES) - 1


def test_a_fetch_that_fails_leaves_nothing(fetched: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(self: MemoryFileSystem, path: str, *values: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", full)
        with pytest.raises(RequestError, match=r"^model.base: memory://models/base: cannot be fetched: .*No space"):
            local_folder("memory://models/base", "model.base")
    assert not [p for p in (tmp_path / "models").iterdir() if not p.name.endswith(".lock")]
    assert Path(local_folder("memory://models/base", "model.base")).is_dir()
