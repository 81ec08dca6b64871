"""Errors of a person's own functions, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from thalweg.errors import ArgumentError
from thalweg.studies.factors import StudyError
from thalweg.tasks import Task
from thalweg.tasks.blame import is_theirs, raised

__all__ = ["sound", "sound_still"]


@contextmanager
def sound(task: Task, words: str = "") -> Iterator[None]:
    """Turn what a task's own functions raise into one sentence.

    Args:
        task: whose functions run inside.
        words: which levels it has, where there are several.

    Raises:
        StudyError: for any error.
    """
    try:
        yield
    except ArgumentError as error:
        raise StudyError(error.argument, error.problem) from error
    except Exception as error:
        raise StudyError(
            "task",
            f"{task.name!r} cannot be trained{f' with {words}' if words else ''}: its model, loss "
            f"or metric raises {raised(error)}",
        ) from error


@contextmanager
def sound_still(task: Task) -> Iterator[None]:
    """The same for a task that its first batch has passed; an error of ours stays one.

    Raises:
        StudyError: for an error that passed a person's own lines, torch's layers or a trace.
    """
    try:
        yield
    except Exception as error:
        if not is_theirs(error):
            raise
        raise StudyError(
            "task",
            f"{task.name!r} was in training when its model, loss or metric raised "
            f"{raised(error)}; what had ended is on record: mend that and begin anew",
        ) from error
