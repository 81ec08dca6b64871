"""Many copies of one model trained in one pass: stack, forward and backward, step, drop."""

from thalweg.replicas.program import Backend, Program
from thalweg.replicas.train import Budget, Evaluation, Programs, probe, step_seconds, train
from thalweg.replicas.update import Replica

__all__ = [
    "Backend",
    "Budget",
    "Evaluation",
    "Program",
    "Programs",
    "Replica",
    "probe",
    "step_seconds",
    "train",
]
