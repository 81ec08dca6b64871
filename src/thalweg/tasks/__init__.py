"""What is trained: model factory, data, loss and metric; built-in and a person's own."""

from thalweg.tasks.builtin import TASKS, load
from thalweg.tasks.task import Metric, Split, Task

__all__ = ["TASKS", "Metric", "Split", "Task", "load"]
