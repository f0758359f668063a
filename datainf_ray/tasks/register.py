"""The tasks by their names. A task's module is loaded when it is asked for."""

from __future__ import annotations

import importlib

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import meant
from datainf_ray.config import ModelConfig
from datainf_ray.tasks.own import TaskCode, code_of, load_task
from datainf_ray.tasks.task import Task

#: Each has a `TASK`.
MODULES = {
    "causal-lm": "datainf_ray.tasks.causal_lm",
    "sequence-classification": "datainf_ray.tasks.sequence_classification",
    "seq2seq-lm": "datainf_ray.tasks.seq2seq_lm",
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
}
LATER = ("text-to-image",)  # what the contract names and this version does not do yet


def task_of(model: ModelConfig) -> Task:
    """The task that a model is trained for. Raises `RequestError` where there is none of that name.

    `package.module:TASK` is a task of the user's own, whose code is run only where `trust_remote_code` allows it.
    """
    name = model.task
    if ":" in name:
        return load_task(name, model.trust_remote_code)
    if name in LATER:
        choice = " or ".join(map(repr, MODULES))
        raise RequestError("model.task", name, "is not available in this version", f"use {choice}")
    if name not in MODULES:
        plain = name.lower().replace("_", "-")
        other = plain if plain in MODULES else OTHERS.get(plain)
        remedy = f"it is called {other} here" if other else f"{meant(name, MODULES)}, or package.module:TASK"
        raise RequestError("model.task", name, "there is no such task", remedy)
    task: Task = importlib.import_module(MODULES[name]).TASK
    return task


def own_code(model: ModelConfig) -> TaskCode | None:
    """The code of a task of the user's own; None where the task is one of ours. Raises `RequestError`."""
    return code_of(model.task) if ":" in model.task else None
