"""Small tables that tests write."""

import numpy as np
import pytest

from thalweg.tasks import TaskError
from thalweg.tasks.tables import table

HEADER = ["a", "b", "y"]


def rows(count=60):
    """Cells of a number, a whole number and one of two classes."""
    numbers = np.random.default_rng(0).normal(size=count)
    return [[f"{x:.3f}", str(i % 7), "uv"[i % 2]] for i, x in enumerate(numbers)]


def write(path, cells, header=HEADER, delimiter=",", charset="utf-8"):
    lines = [delimiter.join(line) for line in [header, *cells]]
    path.write_bytes(("\n".join(lines) + "\n").encode(charset))
    return path


def changed(row, column, value, count=60):
    """The same cells but for one."""
    found = rows(count)
    found[row][column] = value
    return found


def refused(data, target="y", **options):
    """Argument and problem of the error that a table raises."""
    with pytest.raises(TaskError) as caught:
        table(data, target, **options)
    assert "\n" not in caught.value.problem
    return caught.value.argument, caught.value.problem
