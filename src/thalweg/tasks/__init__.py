"""What is trained: model factory, data, loss and metric; built-in and a person's own."""

from thalweg.tasks.builtin import TASKS
from thalweg.tasks.loading import load
from thalweg.tasks.losses import LOSSES, Loss
from thalweg.tasks.metrics import METRICS, Metric
from thalweg.tasks.modules import load_module
from thalweg.tasks.split import Batch, Split, TaskError
from thalweg.tasks.task import Task

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
