"""The maths: one pure update per optimizer, from which every executor is made."""

from thalweg.rules.adaptive import ADADELTA, ADAGRAD, ADAM, RMSPROP
from thalweg.rules.descent import MOMENTUM, NAG, SGD
from thalweg.rules.rule import Choice, Flag, HyperparameterError, Number, Rule

__all__ = [
    "ADADELTA",
    "ADAGRAD",
    "ADAM",
    "MOMENTUM",
    "NAG",
    "RMSPROP",
    "SGD",
    "Choice",
    "Flag",
    "HyperparameterError",
    "Number",
    "Rule",
]
