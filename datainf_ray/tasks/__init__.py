"""What is being trained: a task says which rows it takes, how they become tensors, and what their losses are.

A new task is one module here with a `TASK`, and a line in `register`. A user's own is a module of theirs with a `Task`.
"""

from datainf_ray.corpus.columns import Combination
from datainf_ray.corpus.tokens import Encoded, EncoderSpec, each
from datainf_ray.tasks.task import Task

__all__ = ["Combination", "Encoded", "EncoderSpec", "Task", "each"]
