"""Many copies of one model trained in one pass: stack, forward and backward, step, drop."""

from thalweg.replicas.program import Backend, Program
from thalweg.replicas.start import at_start
from thalweg.replicas.train import (
    Budget,
    Evaluation,
    Programs,
    Training,
    probe,
    step_seconds,
    train,
)
from thalweg.replicas.update import Factors, Replica

__all__ = [
    "Backend",
    "Budget",
    "Evaluation",
    "Factors",
    "Program",
    "Programs",
    "Replica",
    "Training",
    "at_start",
    "probe",
    "step_seconds",
    "train",
]
