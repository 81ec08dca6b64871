"""What is trained: model factory, data, loss and metric; built-in and a person's own."""

from thalweg.tasks.builtin import TASKS
from thalweg.tasks.loading import load
from thalweg.tasks.losses import LOSSES
from thalweg.tasks.metrics import METRICS
from thalweg.tasks.modules import load_module
from thalweg.tasks.task import Batch, Loss, Metric, Split, Task, TaskError

__all__ = [
    "LOSSES",
    "METRICS",
    "TASKS",
    "Batch",
    "Loss",
    "Metric",
    "Split",
    "Task",
    "TaskError",
    "load",
    "load_module",
]
