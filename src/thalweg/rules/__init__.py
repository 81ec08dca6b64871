"""The maths: one pure update per optimizer, from which every executor is made."""

from thalweg.rules.adam import ADAM, ADAMAX, ADAMW, ADAN, ADEMAMIX, ADOPT, NADAM, RADAM
from thalweg.rules.adaptive import ADADELTA, ADAGRAD, RMSPROP, RPROP
from thalweg.rules.descent import ASGD, MOMENTUM, NAG, SGD
from thalweg.rules.free import DADAPT_ADAM, PRODIGY, SCHEDULE_FREE_ADAMW, SCHEDULE_FREE_SGD
from thalweg.rules.layers import LAMB, LARS
from thalweg.rules.rule import Choice, Flag, HyperparameterError, Number, Rule
from thalweg.rules.signs import LION, SIGNUM, TIGER

__all__ = [
    "ADADELTA",
    "ADAGRAD",
    "ADAM",
    "ADAMAX",
    "ADAMW",
    "ADAN",
    "ADEMAMIX",
    "ADOPT",
    "ASGD",
    "DADAPT_ADAM",
    "LAMB",
    "LARS",
    "LION",
    "MOMENTUM",
    "NADAM",
    "NAG",
    "PRODIGY",
    "RADAM",
    "RMSPROP",
    "RPROP",
    "SCHEDULE_FREE_ADAMW",
    "SCHEDULE_FREE_SGD",
    "SGD",
    "SIGNUM",
    "TIGER",
    "Choice",
    "Flag",
    "HyperparameterError",
    "Number",
    "Rule",
]
