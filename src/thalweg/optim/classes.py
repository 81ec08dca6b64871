"""One class an optimizer. What it takes, and what its pages say, comes from its rule."""

from typing import Any, ClassVar

import torch
from torch.optim.optimizer import Optimizer

from thalweg import rules
from thalweg.optim.base import RuleOptimizer
from thalweg.rules import matrices

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "NAG",
    "SGD",
    "SOAP",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "DAdaptAdam",
    "Lion",
    "Momentum",
    "Muon",
    "NAdam",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Shampoo",
    "Signum",
    "Tiger",
]


class SGD(RuleOptimizer, rule=rules.SGD, like=torch.optim.SGD):
    """Stochastic gradient descent, with momentum and Nesterov's as torch.optim.SGD has them."""


class Momentum(RuleOptimizer, rule=rules.MOMENTUM):
    """Gradient descent with momentum, in each of its three forms."""

    torchs: ClassVar[type[Optimizer] | None] = torch.optim.SGD


class NAG(RuleOptimizer, rule=rules.NAG):
    """Nesterov's accelerated gradient, in each of its three forms."""

    torchs: ClassVar[type[Optimizer] | None] = torch.optim.SGD
    for_torch: ClassVar[dict[str, Any]] = {"nesterov": True}


class Adagrad(RuleOptimizer, rule=rules.ADAGRAD, like=torch.optim.Adagrad):
    """AdaGrad."""

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add a group of parameters; as torch's, they have their state from the start."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            self.start_state(p, self.param_groups[-1])


class RMSprop(RuleOptimizer, rule=rules.RMSPROP, like=torch.optim.RMSprop):
    """RMSProp, centered or not, with momentum or not."""


class Adadelta(RuleOptimizer, rule=rules.ADADELTA, like=torch.optim.Adadelta):
    """AdaDelta."""


class Rprop(RuleOptimizer, rule=rules.RPROP, like=torch.optim.Rprop):
    """Resilient propagation."""


class ASGD(RuleOptimizer, rule=rules.ASGD, like=torch.optim.ASGD):
    """Averaged stochastic gradient descent."""


class Adam(RuleOptimizer, rule=rules.ADAM, like=torch.optim.Adam):
    """Adam, and AMSGrad."""


class AdamW(RuleOptimizer, rule=rules.ADAMW, like=torch.optim.AdamW):
    """Adam with weight decay apart from the gradient."""


class NAdam(RuleOptimizer, rule=rules.NADAM, like=torch.optim.NAdam):
    """Adam with Nesterov's momentum."""


class RAdam(RuleOptimizer, rule=rules.RADAM, like=torch.optim.RAdam):
    """Adam with rectified variance."""


class Adamax(RuleOptimizer, rule=rules.ADAMAX, like=torch.optim.Adamax):
    """Adam with the infinity norm."""


class Adan(RuleOptimizer, rule=rules.ADAN):
    """Adaptive Nesterov momentum."""


class AdEMAMix(RuleOptimizer, rule=rules.ADEMAMIX):
    """Adam with a second, slow average of the gradient."""


class ADOPT(RuleOptimizer, rule=rules.ADOPT):
    """Adam that converges with any beta2."""


class Signum(RuleOptimizer, rule=rules.SIGNUM):
    """Sign of an average of the gradient."""


class Tiger(RuleOptimizer, rule=rules.TIGER):
    """Signum with decoupled weight decay."""


class Lion(RuleOptimizer, rule=rules.LION):
    """Evolved sign momentum."""


class ScheduleFreeSGD(RuleOptimizer, rule=rules.SCHEDULE_FREE_SGD):
    """SGD without a schedule; call `eval` before evaluating and `train` before training on."""


class ScheduleFreeAdamW(RuleOptimizer, rule=rules.SCHEDULE_FREE_ADAMW):
    """AdamW without a schedule; call `eval` before evaluating and `train` before training on."""


class Prodigy(RuleOptimizer, rule=rules.PRODIGY):
    """Adam that finds its learning rate."""


class DAdaptAdam(RuleOptimizer, rule=rules.DADAPT_ADAM):
    """Adam that finds its learning rate, by D-adaptation."""


class LARS(RuleOptimizer, rule=rules.LARS):
    """Momentum whose step is scaled per tensor by norms."""


class LAMB(RuleOptimizer, rule=rules.LAMB):
    """Adam whose step is scaled per tensor by norms."""


class Adafactor(RuleOptimizer, rule=matrices.ADAFACTOR, like=torch.optim.Adafactor):
    """Second moments by rows and columns."""


class Muon(RuleOptimizer, rule=matrices.MUON, like=torch.optim.Muon):
    """Orthogonal steps for matrices, AdamW for the rest."""


class Shampoo(RuleOptimizer, rule=matrices.SHAMPOO):
    """Preconditioned by statistics of every side of a tensor."""


class SOAP(RuleOptimizer, rule=matrices.SOAP):
    """Adam in the eigenbasis of Shampoo's preconditioner."""
