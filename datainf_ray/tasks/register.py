"""The tasks by their names. A task's module is loaded when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import meant
from datainf_ray.config import ModelConfig, RunConfig
from datainf_ray.tasks.own import TaskCode, code_of, load_task
from datainf_ray.tasks.task import Task

#: Each has a `TASK`.
MODULES = {
    "causal-lm": "datainf_ray.tasks.causal_lm",
    "sequence-classification": "datainf_ray.tasks.sequence_classification",
    "seq2seq-lm": "datainf_ray.tasks.seq2seq_lm",
    "text-to-image": "datainf_ray.tasks.text_to_image",
}
#: What others call them: peft's task types, and transformers' pipelines.
OTHERS = {
    "seq-cls": "sequence-classification",
    "text-classification": "sequence-classification",
    "sentiment-analysis": "sequence-classification",
    "classification": "sequence-classification",
    "regression": "sequence-classification",
    "text-generation": "causal-lm",
    "clm": "causal-lm",
    "sft": "causal-lm",
    "chat": "causal-lm",
    "seq-2-seq-lm": "seq2seq-lm",
    "text2text-generation": "seq2seq-lm",
    "summarization": "seq2seq-lm",
    "translation": "seq2seq-lm",
    "diffusion": "text-to-image",
    "text2image": "text-to-image",
    "stable-diffusion": "text-to-image",
}


def task_of(model: ModelConfig) -> Task:
    """The task that a model is trained for. Raises `RequestError` where there is none of that name.

    `package.module:TASK` is a task of the user's own, whose code is run only where `trust_remote_code` allows it.
    """
    name = model.task
    if ":" in name:
        return load_task(name, model.trust_remote_code)
    if name not in MODULES:
        plain = name.lower().replace("_", "-")
        other = plain if plain in MODULES else OTHERS.get(plain)
        remedy = f"it is called {other} here" if other else f"{meant(name, MODULES)}, or package.module:TASK"
        raise RequestError("model.task", name, "there is no such task", remedy)
    task: Task = importlib.import_module(MODULES[name]).TASK
    missing = [package for module, package in task.needs.items() if importlib.util.find_spec(module) is None]
    if missing:
        problem = f"needs {' and '.join(missing)}, not installed here"
        raise RequestError("model.task", name, problem, f"pip install 'datainf-ray[{task.extra}]'")
    return task


def task_for(config: RunConfig) -> Task:
    """The task of a run, as its whole configuration asks for it. Raises `RequestError`."""
    task = task_of(config.model)
    return task.configured(task, config)


def task_for_rows(config: RunConfig, name: str) -> Task:
    """The task, with the kinds of row that "train" or "queries" may have. Raises `RequestError`."""
    task = task_of(config.model)
    return task if task.kinds_of is None else replace(task, kinds=task.kinds_of(config, name))


def own_code(model: ModelConfig) -> TaskCode | None:
    """The code of a task of the user's own; None where the task is one of ours. Raises `RequestError`."""
    return code_of(model.task) if ":" in model.task else None
