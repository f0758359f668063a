"""jobs/notebook.ipynb from its first cell to its last; and what interrupting or killing a notebook's kernel does."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from PIL import Image
from rich.console import Console

import datainf_ray
from datainf_ray.common.errors import RunFailedError
from datainf_ray.watch.lines import Lines
from datainf_ray.watch.progress import Progress
from datainf_ray.watch.shown import Shown
from tests import tiny
from tests.runs_of import attribute, scores

ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # seconds for a step that takes some


@pytest.fixture(autouse=True)
def _for_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels import what is tested here, and leave nothing in the home directory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.mark.slow
@pytest.mark.cluster
def test_the_notebook_from_its_first_cell_to_its_last(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    notebook = nbformat.read(ROOT / "jobs" / "notebook.ipynb", 4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "elsewhere")
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert parameters is next(cell for cell in notebook.cells if cell.cell_type == "code")
    parameters.source = f"CONFIG = {config!r}\nOUTPUT = {str(tmp_path / 'run')!r}"
    NotebookClient(
        notebook, timeout=_PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    run = datainf_ray.open_run(str(tmp_path / "run"))
    assert run.state == "done"
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert not [out for out in shown if out.get("name") == "stderr" and "Error" in out.text]

    watched = _outputs(notebook, "run.progress()")
    assert _text(watched).splitlines()[0] in ("starting", "running")
    waited = _outputs(notebook, "run.wait()")
    assert waited[-1].data["text/html"] == run._repr_html_()
    assert "Most harmful" in waited[-1].data["text/html"]
    assert "(harmful)" in _text(_outputs(notebook, "run.record.sign"))

    columns = ["rank", "id", "influence", "preview"]
    for name, harmful in (("helpful", False), ("harmful", True)):
        table = run.top(0, k=10, harmful=harmful).to_pandas()
        assert len(table) == 10
        assert _outputs(notebook, f"{name} = run.top")[-1].data["text/html"] == table[columns]._repr_html_()

    influence = scores(run).numpy()
    harmful_to_most = int(np.sum(np.mean(influence > 0, axis=1) > 0.5))
    most = _outputs(notebook, '"harmful_to"')
    assert f"{harmful_to_most} of 40 rows are harmful to more than half of the queries" in _text(most)
    worst = np.argmax(np.mean(influence / np.sqrt(np.mean(influence**2, axis=0)), axis=1))
    first = most[-1].data["text/plain"].splitlines()[1].split()
    assert first[1:3] == [str(worst), f"row-{worst}"]

    for source in ("axes.barh", "axes.hist", "axes.broken_barh"):
        (picture,) = [out.data["image/png"] for out in _outputs(notebook, source) if "image/png" in out.get("data", {})]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert image.shape[1] > 600
        assert np.mean(image < 200) > 0.02  # something is drawn

    ranking = pd.read_parquet(tmp_path / "run-ranking.parquet")
    pd.testing.assert_frame_equal(ranking.drop(columns="query_id"), run.tops().to_pandas())
    assert ranking["query_id"].tolist() == [f"row-{number}" for number in ranking["query"]]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run-ranking.csv"), ranking, check_dtype=False, rtol=1e-6)
    again = _outputs(notebook, "open_run")
    assert _text(again).splitlines()[0] == "done"
    assert again[-1].data["text/html"] == run.top(0, k=3).to_pandas()._repr_html_()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_kernel_that_is_interrupted_and_then_killed(
    tmp_path: Path, tiny_llama: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    first, second = (_slow(tmp_path, tiny_llama, name) for name in ("first", "second"))
    with _kernel(tmp_path) as kernel:
        cell = kernel.begin(f"import datainf_ray\nrun = datainf_ray.attribute({first!r})\nrun.state")
        _wait_for(tmp_path / "first" / "checkpoints" / "queries.json")
        rays = kernel.children()
        began = time.monotonic()
        kernel.manager.interrupt_kernel()
        assert kernel.end(cell)["ename"] == "KeyboardInterrupt"
        assert time.monotonic() - began < 10  # 2 to 3 on a calm machine
        assert _document(tmp_path / "first")["state"] == "interrupted"

        # The same call at once again, while the Ray of the first may still be about to end; and beside it another run,
        # which has its Ray when this one is done with its own.
        beside = "\n".join(
            [
                "import threading, time",
                "def begin():",
                "    global other",
                "    while datainf_ray.open_run(again['output']).state != 'running':",
                "        time.sleep(0.1)",
                f"    other = datainf_ray.attribute({second!r}, block=False)",
                "threading.Thread(target=begin).start()",
            ]
        )
        cell = kernel.begin(f"again = {first!r}\n{beside}\nrun = datainf_ray.attribute(again)\nrun.state, other.state")
        _, alive = psutil.wait_procs(rays, timeout=15)
        assert not alive
        assert kernel.end(cell)["status"] == "ok"
        assert kernel.text.endswith("('done', 'running')")
        assert "queries: taken up from an earlier attempt" in kernel.text
        assert "200 rows scored" in kernel.text

        _wait_for(tmp_path / "second" / "checkpoints" / "queries.json")
        rays = kernel.children()
        assert {"raylet", "gcs_server"} <= {ray.name() for ray in rays}
        os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
        # Two small helpers of Ray's, without any of our code, try for a minute to tell a Ray that is gone about it.
        agents = [ray for ray in rays if ray.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
        _, alive = psutil.wait_procs(set(rays).difference(agents), timeout=15)
        assert not alive
        for agent in agents:
            agent.kill()
    left = datainf_ray.open_run(str(tmp_path / "second"))
    deadline = time.monotonic() + 60
    while left.state == "running":  # until its witness has said that it was interrupted
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert left.state == "interrupted"
    with pytest.raises(RunFailedError, match=r"was ended from outside .*; run it again to go on"):
        left.wait(30, progress=False)

    request.getfixturevalue("local_ray")  # not before: if it is not up yet, kernels have the machine for themselves
    run = attribute(second)
    assert run.summary()["status"] == {"ok": 200}
    assert [sweep["name"] for sweep in run.summary()["sweeps"]].count("queries") == 1
    np.testing.assert_array_equal(scores(run), scores(datainf_ray.open_run(str(tmp_path / "first"))))


def test_a_run_elsewhere_is_shown_at_its_own_speed() -> None:
    written = io.StringIO()
    took = {"curvature": Progress("running", "curvature", 98, 98, 10_000, 40.0, 2)}  # of 100 rows 98 could be used
    shown = Shown(Lines(Console(file=written, width=200)), took.get)
    shown.show(Progress("running"))
    shown.show(Progress("running", "curvature", 100, 50, 5000, 10.0, 2))  # first heard of when half is done
    shown.show(Progress("running", "scores", 100, 90, 9000, 18.0, 3))
    assert written.getvalue().splitlines() == ["curvature: 100 of 100 rows, 250 tokens/s, 2 workers, took 0:40"]
    shown.end()
    assert written.getvalue().splitlines()[1:] == ["scores: 90 of 100 rows, 500 tokens/s, 3 workers, 0:02 left"]


def _slow(folder: Path, model: dict[str, Any], output: str) -> dict[str, Any]:
    """A run that takes some seconds after its queries are done."""
    tiny.write_rows(folder / "train.jsonl", 200, seed=1)
    config = tiny.configuration(folder, model, folder / output)
    config["cluster"] |= {"batch_tokens": 1}
    return {**config, "gradients": "recompute"}


def _outputs(notebook: nbformat.NotebookNode, source: str) -> list[nbformat.NotebookNode]:
    """What the one code cell shows that has `source` in it."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    return cell.outputs


def _text(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs)


def _document(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


class Kernel:
    """A kernel as Jupyter starts it, and what its cells have shown."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self.text = ""

    def begin(self, source: str) -> str:
        """Execute a cell, and go on at once."""
        self.text = ""
        return self.client.execute(source)

    def end(self, cell: str) -> dict[str, Any]:
        """Wait until the cell has ended; its reply: `status`, and of an error `ename` and `evalue`."""
        while True:
            message = self.client.get_iopub_msg(timeout=_PATIENCE)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            self.text += content.get("text") or content.get("data", {}).get("text/plain", "")
            if content.get("execution_state") == "idle":
                break
        while (reply := self.client.get_shell_msg(timeout=_PATIENCE))["parent_header"].get("msg_id") != cell:
            pass
        return reply["content"]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.manager.provisioner.pid).children(recursive=True)


@contextmanager
def _kernel(folder: Path) -> Iterator[Kernel]:
    manager = KernelManager()
    manager.start_kernel(cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
