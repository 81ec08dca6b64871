"""Learning-rate schedules: pure functions of the step, and the scheduler that applies them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thalweg.schedules.frame import frame
from thalweg.schedules.presets import (
    constant_with_warmup,
    cosine,
    exp,
    exp_range,
    fixed,
    inv,
    inverse_sqrt,
    linear,
    multistep,
    noam,
    one_cycle,
    poly,
    sgdr,
    sigmoid,
    step,
    triangular,
    triangular2,
    warmup,
    wsd,
)
from thalweg.schedules.registry import SCHEDULES, Entry
from thalweg.schedules.schedule import Schedule, ScheduleError
from thalweg.schedules.text import parse

if TYPE_CHECKING:
    from thalweg.schedules.scheduler import Scheduler

__all__ = [
    "SCHEDULES",
    "Entry",
    "Schedule",
    "ScheduleError",
    "Scheduler",
    "constant_with_warmup",
    "cosine",
    "exp",
    "exp_range",
    "fixed",
    "frame",
    "inv",
    "inverse_sqrt",
    "linear",
    "multistep",
    "noam",
    "one_cycle",
    "parse",
    "poly",
    "sgdr",
    "sigmoid",
    "step",
    "triangular",
    "triangular2",
    "warmup",
    "wsd",
]


def __getattr__(name: str) -> Any:
    if name == "Scheduler":  # torch takes seconds to import, and the functions do without
        return import_module("thalweg.schedules.scheduler").Scheduler
    raise AttributeError(f"module 'thalweg.schedules' has no attribute {name!r}")
