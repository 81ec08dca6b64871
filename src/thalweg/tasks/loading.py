"""Tasks by what is typed for them."""

from functools import cache
from pathlib import Path

from thalweg.tasks.builtin import TASKS
from thalweg.tasks.modules import load_module
from thalweg.tasks.npz import npz_task
from thalweg.tasks.task import Task, TaskError

__all__ = ["load"]

TABLES = (".csv", ".tsv", ".parquet")


def load(text: str) -> Task:
    """The task that a name or a path stands for.

    Args:
        text: name of a built-in task; ``FILE.py:FUNCTION``, see `thalweg.tasks.load_module`; or
            the path of an ``.npz`` file, see `thalweg.tasks.npz`.

    Raises:
        TaskError: if that is no task, with what to do.
    """
    if text in TASKS:
        return _built_in(text)
    path, suffix = Path(text), Path(text).suffix.lower()
    if suffix == ".npz":
        return npz_task(path)
    if suffix in TABLES:
        raise TaskError("task", f"{text} is a table and needs --target, the column to predict")
    if suffix == ".py" or Path(text.rpartition(":")[0]).suffix.lower() == ".py":
        return load_module(text)
    raise TaskError(
        "task",
        f"there is no task {text!r}; there are {', '.join(TASKS)}, FILE.py:FUNCTION and FILE.npz",
    )


@cache
def _built_in(name: str) -> Task:
    return TASKS[name]()
