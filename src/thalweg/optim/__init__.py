"""Drop-in optimizers: a `torch.optim.Optimizer` in front of every rule."""

from thalweg.optim.adaptive import Adadelta, Adagrad, Adam, RMSprop
from thalweg.optim.base import RuleOptimizer
from thalweg.optim.descent import NAG, SGD, Momentum

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "Momentum", "RMSprop", "RuleOptimizer"]
