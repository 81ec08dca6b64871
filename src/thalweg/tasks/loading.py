"""Tasks by what is typed for them."""

from functools import cache
from pathlib import Path

from thalweg.tasks.builtin import TASKS
from thalweg.tasks.modules import load_module
from thalweg.tasks.npz import npz_task
from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.read import is_table
from thalweg.tasks.task import Task

__all__ = ["load"]


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
    if suffix == ".npy":
        raise TaskError(
            "task",
            f"{text} is one array, and a task needs inputs and targets; save both in one file by "
            f"numpy.savez({path.stem + '.npz'!r}, x=x, y=y)",
        )
    if is_table(text):
        raise TaskError(
            "task",
            f"{text} is a table, and which column is to be predicted is not said; give "
            f"thalweg.table({text!r}, COLUMN)",
        )
    if suffix == ".py" or Path(text.rpartition(":")[0]).suffix.lower() == ".py":
        return load_module(text)
    if path.exists():
        what = "a folder; give a file" if path.is_dir() else "a file whose name has no ending"
        raise TaskError(
            "task", f"{text!r} is {what}: one that ends in .csv, .tsv, .parquet, .npz or .py"
        )
    raise TaskError(
        "task",
        f"there is no task {text!r}; there are {', '.join(TASKS)}, tables (FILE.csv), images "
        f"(mnist, fashion_mnist, cifar10), FILE.npz and FILE.py:FUNCTION",
    )


@cache
def _built_in(name: str) -> Task:
    return TASKS[name]()
