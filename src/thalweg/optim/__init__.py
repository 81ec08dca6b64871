"""Drop-in optimizers: a `torch.optim.Optimizer` in front of every rule, and some around another."""

from torch.optim import LBFGS

from thalweg.optim import classes
from thalweg.optim.base import RuleOptimizer, define, from_rule
from thalweg.optim.classes import *  # noqa: F403
from thalweg.optim.wrappers import GD, SAM, Accumulate, Lookahead, Wrapper

__all__ = [
    "GD",
    "LBFGS",
    "SAM",
    "Accumulate",
    "Lookahead",
    "RuleOptimizer",
    "Wrapper",
    "define",
    "from_rule",
]
__all__ += classes.__all__
