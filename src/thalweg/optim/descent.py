"""SGD, Momentum and NAG with torch.optim's signatures.

``foreach`` and ``fused`` are taken and kept in the parameter groups, so that code and checkpoints
written for torch.optim serve here too; there is one kernel, and they have no effect on it.
``capturable=True`` and ``differentiable=True`` raise a `ValueError`. Arguments after ``*`` that
torch.optim does not have choose another convention of the same rule.
"""

from typing import Any

from torch.optim.optimizer import ParamsT

from thalweg import rules
from thalweg.optim.base import Real, RealOrTensor, RuleOptimizer

__all__ = ["NAG", "SGD", "Momentum"]


class SGD(RuleOptimizer):
    """Stochastic gradient descent, with momentum and Nesterov's momentum as torch.optim.SGD has it.

    Without momentum ``x <- x - lr g``; with it the rule `MOMENTUM`, or with ``nesterov`` `NAG`.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate, at least 0; a tensor of one element is read at every step.
        momentum: mu, in [0, 1).
        dampening: tau in ``v <- mu v + (1 - tau) g``; the first step takes ``v = g``.
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        nesterov: step along ``g + mu v``; needs momentum and no dampening.
        maximize: climb instead of descend.
        foreach, fused: no effect, see above.
        differentiable: must be False.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead.

    Raises:
        HyperparameterError: for a value outside its range.
        ValueError: for ``nesterov`` without momentum or with dampening.
    """

    rule = rules.SGD

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1e-3,
        momentum: Real = 0,
        dampening: Real = 0,
        weight_decay: RealOrTensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
            # Which of their forms the rules MOMENTUM and NAG run; theirs alone have others.
            form="torch",
            bias_correction=False,
        )

    def rule_of(self, group: dict[str, Any]) -> rules.Rule:
        """SGD, MOMENTUM or NAG, as the group's momentum and nesterov say."""
        if group["nesterov"]:
            return rules.NAG
        return rules.MOMENTUM if group["momentum"] else rules.SGD

    def check_group(self, group: dict[str, Any], owner: str) -> None:
        """Raise `ValueError` as torch.optim.SGD does, besides what every rule checks."""
        super().check_group(group, owner)
        if group["nesterov"] and (not group["momentum"] or group["dampening"]):
            raise ValueError(f"{owner}: nesterov needs a momentum above 0 and dampening 0")


class Momentum(RuleOptimizer):
    """Gradient descent with momentum, in each of its three forms.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate, at least 0; a tensor of one element is read at every step.
        momentum: mu, in [0, 1).
        dampening: of form "torch" alone.
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        form: ``"torch"``: ``v <- mu v + (1 - dampening) g; x <- x - lr v``, the rate outside the
            velocity, so that a change of rate acts at once. ``"sutskever"``:
            ``v <- mu v - lr g; x <- x + v``. ``"ewma"``: ``v <- mu v + (1 - mu) g;
            x <- x - lr v``, an effective rate lower by ``1 - mu``.
        bias_correction: divide the average of form "ewma" by ``1 - mu^t``.
        maximize: climb instead of descend.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead.

    Raises:
        HyperparameterError: for a value outside its range.
    """

    rule = rules.MOMENTUM

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1e-3,
        momentum: Real = 0.9,
        dampening: Real = 0,
        weight_decay: Real = 0,
        *,
        form: str = "torch",
        bias_correction: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            form=form,
            bias_correction=bias_correction,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class NAG(RuleOptimizer):
    """Nesterov's accelerated gradient, in both of its forms.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate, at least 0; a tensor of one element is read at every step.
        momentum: mu, in [0, 1).
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        form: ``"torch"``: ``v <- mu v + g; x <- x - lr (g + mu v)``. ``"lookahead"``: the gradient
            is taken at ``x + mu v``, so that ``step`` needs a closure that evaluates the loss and
            its gradient; ``v <- mu v - lr g; x <- x + v``.
        maximize: climb instead of descend.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead.

    Raises:
        HyperparameterError: for a value outside its range.
    """

    rule = rules.NAG

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1e-3,
        momentum: Real = 0.9,
        weight_decay: Real = 0,
        *,
        form: str = "torch",
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            momentum=momentum,
            # For torch.optim.SGD, should it load a checkpoint of ours.
            dampening=0.0,
            nesterov=True,
            weight_decay=weight_decay,
            form=form,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )
