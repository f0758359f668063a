"""The example of a task of the user's own, whole; found or refused, taken to the workers, part of the fingerprint."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import datainf_ray
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.config import ModelConfig, load_config
from datainf_ray.model.load import load_replica
from datainf_ray.request.identity import difference
from datainf_ray.request.job import prepare
from datainf_ray.tasks.own import _LOADED, code_of
from datainf_ray.tasks.register import MODULES, task_of
from tests import reference, tiny
from tests.runs_of import COMMAND, attribute, scores

README = Path(__file__).parents[2] / "datainf_ray" / "tasks" / "README.md"
UNUSABLE = 5  # a training row without negatives


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A folder with the README's embedding.py, a small encoder with LoRA, and rows."""
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    (tmp_path / "embedding.py").write_text(found[1], encoding="utf-8")
    torch.manual_seed(0)
    base = AutoModel.from_config(tiny.CONFIGS["bert"]())
    base.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=2, target_modules=["query", "value"])
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    for name, count, seed in (("train", 24, 1), ("queries", 3, 2)):
        generator = torch.Generator().manual_seed(seed)
        lines = []
        for k in range(count):
            texts = [tiny.words(generator, 2 + (3 * k + j) % 7) for j in range(3 + k % 3)]
            bad = (name, k) == ("train", UNUSABLE)
            row = {"name": f"row-{k}", "query": texts[0], "positive": texts[1], "negatives": [] if bad else texts[2:]}
            lines.append(json.dumps(row) + "\n")
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def configuration(folder: Path, **model: Any) -> dict[str, Any]:
    asked = {"task": "embedding:TASK", "trust_remote_code": True} | model
    asked |= {key: str(folder / key) for key in ("base", "adapter")}
    return tiny.configuration(folder, asked, folder / "run")


def gradients(folder: Path, name: str) -> tuple[dict[str, Tensor], list[float]]:
    """{parameter: rows × size} and the losses of the usable rows: in float64, a row and a text at a time."""
    base = AutoModel.from_pretrained(folder / "base", dtype=torch.float64, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    out: dict[str, list[Tensor]] = {n: [] for n in named}
    losses = []
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not row["negatives"]:
            continue
        ids = [tokenizer(text)["input_ids"] for text in (row["query"], row["positive"], *row["negatives"])]
        query, *others = [model(input_ids=torch.tensor([x])).last_hidden_state[0].mean(0) for x in ids]
        likes = [torch.exp(query @ other / query.norm() / other.norm() / 0.05) for other in others]
        loss = -torch.log(likes[0] / sum(likes))
        losses.append(loss.item())
        for n, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            out[n].append(g.flatten())
    return {n: torch.stack(g) for n, g in out.items()}, losses


def is_right(run: datainf_ray.Run, folder: Path) -> None:
    (g, losses), (v, _) = gradients(folder, "train"), gradients(folder, "queries")
    usable = [k for k in range(24) if k != UNUSABLE]
    assert reference.worst(scores(run)[usable], reference.datainf(g, v)) < 1e-4
    rows = run.examples().to_pylist()
    got = [rows[k]["loss"] for k in usable]
    torch.testing.assert_close(torch.tensor(got).double(), torch.tensor(losses).double(), rtol=1e-4, atol=0)
    assert (rows[UNUSABLE]["status"], rows[UNUSABLE]["loss"]) == ("unreadable", None)
    assert [problem.detail for problem in run.record.problems] == ["there is no negative"]
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    previews = {row["row"]: row["preview"] for row in run.tops().to_pylist()}
    assert previews[0] == f"{first['query']} ⟶ {first['positive']}"
    assert run.record.capture.path == "hooks"


@pytest.mark.cluster
def test_the_readmes_example_runs_and_is_right(example: Path) -> None:
    """By the command, in the module's folder, on a Ray that it starts by itself."""
    (example / "run.yaml").write_text(yaml.safe_dump(configuration(example)))
    done = subprocess.run([*COMMAND, "run", "run.yaml"], cwd=example, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    is_right(datainf_ray.open_run(str(example / "run")), example)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.fresh_workers  # a driver that is elsewhere knows nothing of those that wait here, and needs their CPUs
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("block", [True, False])
def test_the_code_travels_to_workers_that_do_not_have_it(
    example: Path, monkeypatch: pytest.MonkeyPatch, block: bool
) -> None:
    """They were started in another directory; so is the driver on the cluster that a background run has."""
    package = example / "home" / "towers"
    package.mkdir(parents=True)
    code = (example / "embedding.py").read_text()
    (package / "__init__.py").write_text("")
    (package / "heat.py").write_text("TEMPERATURE = 0.05\n")
    (package / "task.py").write_text(code.replace("TEMPERATURE = 0.05", "from towers.heat import TEMPERATURE"))
    monkeypatch.chdir(example / "home")
    run = attribute(configuration(example, task="towers.task:TASK"), block=block)
    is_right(run if block else run.wait(progress=False), example)


@pytest.mark.parametrize(
    ("task", "trusted", "said"),
    [
        ("broken:TASK", False, r"broken:TASK: a task of your own is Python code, .* model.trust_remote_code: true"),
        ("broken:TASK", True, r"broken:TASK: broken cannot be imported: ZeroDivisionError: "),
        ("needy:TASK", True, r"needy:TASK: needy cannot be imported: No module named 'absent'"),
        ("nowhere.tasks:TASK", True, r"nowhere.tasks:TASK: there is no module 'nowhere' in /.* or on sys.path"),
        ("embedding.tasks:TASK", True, r"embedding.tasks:TASK: there is no module 'embedding.tasks' in /"),
        ("embedding:TSK", True, r"embedding:TSK: embedding \(.*embedding.py\) has no 'TSK'; it has TASK"),
        ("embedding:losses", True, r"embedding:losses: that is a function in embedding .*, not a .*tasks.Task"),
        ("embedding:", True, r"embedding:: a task of your own is named package.module:TASK"),
        ("a/b.py:TASK", True, r"a/b.py:TASK: a task of your own is named package.module:TASK"),
        (
            "sequence-clasification",
            False,
            r"sequence-clasification: there is no such task; did you mean 'sequence-classification'\?",
        ),
        (
            "poetry",
            False,
            r"poetry: there is no such task; known are causal-lm, .*, text-to-image, or package.module:TASK",
        ),
        ("stable-diffusion", False, r"stable-diffusion: there is no such task; it is called text-to-image here"),
    ],
)
def test_what_is_no_task_is_refused_in_a_line(
    example: Path, monkeypatch: pytest.MonkeyPatch, task: str, trusted: bool, said: str
) -> None:
    monkeypatch.chdir(example)
    (example / "broken.py").write_text("open('was-run', 'w')\n1 / 0\n")
    (example / "needy.py").write_text("import absent\n")
    with pytest.raises(RequestError, match=f"^model.task: {said}") as error:
        task_of(ModelConfig(base="b", adapter="a", task=task, trust_remote_code=trusted))
    assert "\n" not in str(error.value)
    assert (example / "was-run").exists() is (trusted and task.startswith("broken"))


def test_the_command_says_so_and_ends_with_2(example: Path) -> None:
    (example / "run.yaml").write_text(yaml.safe_dump(configuration(example, trust_remote_code=False)))
    done = subprocess.run([*COMMAND, "plan", "run.yaml"], cwd=example, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2
    assert "trust_remote_code: true" in done.stderr.replace("\n", " ")


def test_other_code_is_another_run(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example)
    config = load_config(configuration(example))
    job = prepare(config, writable=False)
    before = job.identity
    assert prepare(config, writable=False).fingerprint == job.fingerprint
    code = example / "embedding.py"
    code.write_text(code.read_text().replace('name="two towers"', 'name="towers"'))
    after = prepare(config, writable=False)
    assert after.task.name == "towers"  # and it is the new code that is used
    assert [key for key in after.identity if after.identity[key] != before[key]] == ["task"]
    assert difference(before, after.identity) == "the task's code is another"


def test_what_the_program_has_imported_stays(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example / "mine.py").write_text((example / "embedding.py").read_text())
    monkeypatch.syspath_prepend(str(example))
    import mine

    model = ModelConfig(base="b", adapter="a", task="mine:TASK", trust_remote_code=True)
    assert task_of(model) is mine.TASK
    assert "mine" not in _LOADED
    (example / "other").mkdir()
    (example / "other" / "mine.py").write_text("")
    monkeypatch.syspath_prepend(str(example / "other"))
    with pytest.raises(RequestError, match=r"found in .*/other, but 'mine' was imported from .* before$"):
        task_of(model)
    monkeypatch.delitem(sys.modules, "mine")


def test_a_task_of_ours_is_no_part_of_the_identity(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    job = prepare(load_config(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")), writable=False)
    assert job.task_code is None
    assert sorted(job.identity) == ["adapter", "base", "encoding", "queries", "settings", "train"]


def test_what_travels(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module by itself, a package whole but for what is hidden; nothing of what is installed."""
    monkeypatch.chdir(example)
    for path in ("pack/a.py", "pack/deep/words.txt", "pack/.git/x", "pack/__pycache__/a.pyc"):
        (example / path).parent.mkdir(parents=True, exist_ok=True)
        (example / path).write_text("TASK = 1")
    assert list(code_of("embedding:TASK").files) == ["embedding.py"]
    assert sorted(code_of("pack.a:TASK").files) == ["pack/a.py", "pack/deep/words.txt"]
    assert code_of("yaml:TASK").installed
    monkeypatch.setattr("datainf_ray.tasks.own.MOST_BYTES", 10)
    with pytest.raises(RequestError, match=r"^model.task: pack.a:TASK: the package .* has 16 bytes of files"):
        code_of("pack.a:TASK")


def test_tasks_are_looked_at_without_loading_torch() -> None:
    code = (
        "import importlib, sys; from datainf_ray.tasks.register import MODULES; "
        "[importlib.import_module(m).TASK for m in MODULES.values()]; "
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert {tiny.task(name).name for name in MODULES} == set(MODULES)


def test_without_a_trial_of_its_own_a_real_row_is_repeated(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example)
    job = prepare(load_config(configuration(example)), writable=False)
    batch = job.task.trial_batch(200, 50, tiny.VOCABULARY, sample=job.sample)
    assert len(batch) == 200 // max(row.tokens for row in job.sample)


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x[:, None], lambda x: x > 0])
def test_losses_that_are_not_one_a_row_end_the_run(
    example: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor]
) -> None:
    monkeypatch.chdir(example)
    job = prepare(load_config(configuration(example)), writable=False)
    losses = job.task.losses
    replica = load_replica(job.config.model, dataclasses.replace(job.task, losses=lambda *given: wrong(losses(*given))))
    with pytest.raises(RunFailedError, match=r"^model.task: its losses are .* not one for each of 2$"):
        replica.losses(job.task.batch(job.sample, [0, 1], 0))
