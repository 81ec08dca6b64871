"""Adagrad, RMSprop, Adadelta and Adam with torch.optim's signatures.

``foreach`` and ``fused`` are taken and kept in the parameter groups, so that code and checkpoints
written for torch.optim serve here too; there is one kernel, and they have no effect on it.
``capturable=True`` and ``differentiable=True`` raise a `ValueError`. Arguments after ``*`` that
torch.optim does not have choose another convention of the same rule.
"""

from torch.optim.optimizer import ParamsT

from thalweg import rules
from thalweg.optim.base import Real, RealOrTensor, RuleOptimizer

__all__ = ["Adadelta", "Adagrad", "Adam", "RMSprop"]


class Adagrad(RuleOptimizer):
    """AdaGrad: ``r <- r + g^2; x <- x - lr / (1 + (t - 1) lr_decay) g / (sqrt(r) + eps)``.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate, at least 0; a tensor of one element is read at every step.
        lr_decay: at least 0.
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        initial_accumulator_value: where r starts; TensorFlow, Keras and optax start it at 0.1.
        eps: at least 0.
        foreach, fused: no effect, see above.
        maximize: climb instead of descend.
        differentiable: must be False.
        eps_in_sqrt: divide by ``sqrt(r + eps)``, as TensorFlow, Keras and optax do.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead.

    Raises:
        HyperparameterError: for a value outside its range.
    """

    rule = rules.ADAGRAD

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1e-2,
        lr_decay: Real = 0,
        weight_decay: Real = 0,
        initial_accumulator_value: Real = 0,
        eps: Real = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        eps_in_sqrt: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
            eps_in_sqrt=eps_in_sqrt,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        # torch.optim.Adagrad has its state from the start, and so have its checkpoints.
        for group in self.param_groups:
            for p in group["params"]:
                self.start_state(p, group)


class RMSprop(RuleOptimizer):
    """RMSProp: ``r <- alpha r + (1 - alpha) g^2; x <- x - lr g / (sqrt(r) + eps)``.

    With momentum ``v <- mu v + g / (sqrt(r) + eps); x <- x - lr v``; centered, r less the square of
    the gradient's average stands under the root.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate, at least 0; a tensor of one element is read at every step.
        alpha: in [0, 1); textbooks' rho, there 0.9.
        eps: at least 0.
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        momentum: mu, in [0, 1).
        centered: divide by an estimate of the standard deviation.
        capturable: must be False.
        foreach: no effect, see above.
        maximize: climb instead of descend.
        differentiable: must be False.
        eps_in_sqrt: divide by ``sqrt(r + eps)``, as TensorFlow does.
        initial_accumulator_value: where r starts; TensorFlow starts it at 1.
        lr_in_momentum: ``v <- mu v + lr g / (sqrt(r) + eps); x <- x - v``.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead.

    Raises:
        HyperparameterError: for a value outside its range.
    """

    rule = rules.RMSPROP

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1e-2,
        alpha: Real = 0.99,
        eps: Real = 1e-8,
        weight_decay: Real = 0,
        momentum: Real = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        eps_in_sqrt: bool = False,
        initial_accumulator_value: Real = 0,
        lr_in_momentum: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
            eps_in_sqrt=eps_in_sqrt,
            initial_accumulator_value=initial_accumulator_value,
            lr_in_momentum=lr_in_momentum,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class Adadelta(RuleOptimizer):
    """AdaDelta: ``u = sqrt(d + eps) / sqrt(r + eps) g; x <- x - lr u``.

    r and d are moving averages of ``g^2`` and ``u^2``.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: factor on the paper's step, at least 0; 1 in the paper.
        rho: in [0, 1).
        eps: at least 0.
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        foreach: no effect, see above.
        capturable: must be False.
        maximize: climb instead of descend.
        differentiable: must be False.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead.

    Raises:
        HyperparameterError: for a value outside its range.
    """

    rule = rules.ADADELTA

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1.0,
        rho: Real = 0.9,
        eps: Real = 1e-6,
        weight_decay: Real = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
            foreach=foreach,
            capturable=capturable,
            maximize=maximize,
            differentiable=differentiable,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class Adam(RuleOptimizer):
    """Adam: ``x <- x - lr m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)``.

    m and s are moving averages of g and ``g^2``.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate, at least 0; a tensor of one element is read at every step.
        betas: beta1 and beta2, each in [0, 1).
        eps: at least 0.
        weight_decay: added to the gradient as ``weight_decay * x``; at least 0.
        amsgrad: divide by the largest s so far.
        foreach, fused: no effect, see above.
        maximize: climb instead of descend.
        capturable, differentiable: must be False.
        decoupled_weight_decay: multiply x by ``1 - lr weight_decay`` instead (AdamW).
        eps_hat: add eps to the root of s before its bias is corrected, as TensorFlow and the
            paper's efficient form do.
        eps_root: added under the root, as in optax; at least 0.

    Raises:
        HyperparameterError: for a value outside its range.
    """

    rule = rules.ADAM

    def __init__(
        self,
        params: ParamsT,
        lr: RealOrTensor = 1e-3,
        betas: tuple[RealOrTensor, RealOrTensor] = (0.9, 0.999),
        eps: Real = 1e-8,
        weight_decay: Real = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        eps_hat: bool = False,
        eps_root: Real = 0,
    ) -> None:
        super().__init__(
            params,
            None,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
            eps_hat=eps_hat,
            eps_root=eps_root,
        )
