"""Schedules as a table of their factors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from thalweg.schedules.schedule import Schedule

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame"]

_POINTS = 2_000  # more than a screen has


def frame(schedules: Mapping[str, Schedule], steps: int) -> "pd.DataFrame":
    """The factors that a training goes through.

    Args:
        schedules: by the names that they get.
        steps: of the training, at least 1.

    Returns:
        Columns ``name``, ``step`` (0 to ``steps - 1``; at most 2,000 of them, evenly spaced) and
        ``factor``.
    """
    import pandas as pd

    at = np.unique(np.linspace(0, steps - 1, min(steps, _POINTS)).round().astype(np.int64))
    parts = [
        pd.DataFrame({"name": name, "step": at, "factor": schedule(at)})
        for name, schedule in schedules.items()
    ]
    return pd.concat(parts, ignore_index=True)
