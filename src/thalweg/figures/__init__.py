"""Every picture, as functions: data frame in, plotly figure out; nothing computes here."""

from thalweg.figures.schedules import schedule_lines, schedules
from thalweg.figures.study import effect, learning_curves, metric_against_lr, time_to_target
from thalweg.figures.tune import batch_sizes, noise, range_test, rates

__all__ = [
    "batch_sizes",
    "effect",
    "learning_curves",
    "metric_against_lr",
    "noise",
    "range_test",
    "rates",
    "schedule_lines",
    "schedules",
    "time_to_target",
]
