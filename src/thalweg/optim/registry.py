"""One row per optimizer.

The conformance suite, the command line's choices, the reference page and the report's legend and
colours read this table, and nothing else lists optimizers.
"""

from typing import Any

import torch

from thalweg import rules
from thalweg.optim.adaptive import Adadelta, Adagrad, Adam, RMSprop
from thalweg.optim.descent import NAG, SGD, Momentum
from thalweg.optim.entry import Entry, Invalid, Tolerance, Valid

__all__ = ["OPTIMIZERS", "Entry"]

_TOLERANCE = Tolerance(
    1e-5,
    1e-12,
    "both round the same sums in different order and fuse different products, a few units in the "
    "last place a step, which 100 steps of a network amplify",
)


def _same(**arguments: Any) -> Valid:
    """torch.optim's class takes the same arguments."""
    return Valid(arguments, arguments)


def _like(oracle: dict[str, Any], **arguments: Any) -> Valid:
    """torch.optim's class takes the same path with other arguments."""
    return Valid(arguments, oracle)


def _alone(reason: str, **arguments: Any) -> Valid:
    """torch.optim has no such convention."""
    return Valid(arguments, None, reason)


_DECOUPLED = "torch.optim has decoupled decay in Adam, NAdam and RAdam alone"
_INSIDE = "torch.optim has eps outside the root"
_COMMON_INVALID = (
    Invalid({"lr": -0.1}, r"lr must be in \[0, inf\), got -0\.1"),
    Invalid({"lr": float("nan")}, r"lr must be in \[0, inf\), got nan"),
    Invalid({"weight_decay": -1.0}, r"weight_decay must be in \[0, inf\), got -1\.0"),
)
_EPS_INVALID = Invalid({"eps": -1e-8}, r"eps must be in \[0, inf\), got -1e-08")
_MOMENTUM_INVALID = (
    Invalid({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
    Invalid({"momentum": -0.5}, r"momentum must be in \[0, 1\), got -0\.5"),
)

_ROWS = (
    Entry(
        name="sgd",
        label="SGD",
        color="#4d4d4d",
        constructor=SGD,
        rule=rules.SGD,
        lr_range=(1e-3, 1e1),
        paper="Robbins and Monro (1951), A stochastic approximation method, Ann. Math. Stat. 22",
        formula="x <- x - lr g",
        oracle=torch.optim.SGD,
        tolerance=_TOLERANCE,
        conventions={"decoupled_weight_decay": "decay apart from the gradient, as in AdamW"},
        valid=(
            _same(lr=0.1),
            _same(lr=0.1, weight_decay=1e-2),
            _same(lr=1e-3, maximize=True, weight_decay=1e-2),
            _same(lr=0.05, momentum=0.9),
            _same(lr=0.05, momentum=0.9, dampening=0.5, weight_decay=1e-3),
            _same(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
            # Without momentum the two decays are one.
            _like(
                {"lr": 0.1, "weight_decay": 1e-2},
                lr=0.1,
                weight_decay=1e-2,
                decoupled_weight_decay=True,
            ),
        ),
        invalid=(
            *_COMMON_INVALID,
            *_MOMENTUM_INVALID,
            Invalid({"nesterov": True}, "nesterov needs a momentum above 0 and dampening 0"),
            Invalid({"differentiable": True}, "differentiable must be False"),
        ),
    ),
    Entry(
        name="momentum",
        label="Momentum",
        color="#e69f00",
        constructor=Momentum,
        rule=rules.MOMENTUM,
        lr_range=(1e-4, 1e0),
        paper="Polyak (1964), Some methods of speeding up the convergence of iteration methods; "
        "Sutskever et al. (2013), On the importance of initialization and momentum, ICML",
        formula="v <- mu v + g;  x <- x - lr v",
        oracle=torch.optim.SGD,
        tolerance=_TOLERANCE,
        conventions={
            'form="sutskever"': "v <- mu v - lr g; x <- x + v. Sutskever et al. and textbooks; "
            "parts from torch's form where lr changes",
            'form="ewma"': "v <- mu v + (1 - mu) g; x <- x - lr v. A moving average, an effective "
            "rate lower by 1 - mu",
            "bias_correction": 'divides the average of form="ewma" by 1 - mu^t',
            "decoupled_weight_decay": "decay apart from the gradient, as in AdamW",
        },
        valid=(
            _like({"lr": 0.05, "momentum": 0.9}, lr=0.05),
            _same(lr=0.05, momentum=0.5, dampening=0.3, weight_decay=1e-3),
            _same(lr=1e-3, momentum=0.9, maximize=True),
            _like({"lr": 0.05, "momentum": 0.9}, lr=0.05, form="sutskever"),
            # The average is 1 - mu times the sum.
            _like({"lr": 0.05, "momentum": 0.9}, lr=0.5, form="ewma"),
            _alone("torch.optim has no moving average", lr=0.5, form="ewma", bias_correction=True),
            _alone(_DECOUPLED, lr=0.05, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        invalid=(
            *_COMMON_INVALID,
            *_MOMENTUM_INVALID,
            Invalid({"form": "polyak"}, "form must be 'torch' or 'sutskever' or 'ewma'"),
        ),
    ),
    Entry(
        name="nag",
        label="NAG",
        color="#d55e00",
        constructor=NAG,
        rule=rules.NAG,
        lr_range=(1e-4, 1e0),
        paper="Nesterov (1983), A method for solving the convex programming problem with "
        "convergence rate O(1/k^2); Sutskever et al. (2013), ICML",
        formula="v <- mu v + g;  x <- x - lr (g + mu v)",
        oracle=torch.optim.SGD,
        tolerance=_TOLERANCE,
        conventions={
            'form="lookahead"': "v <- mu v - lr g(x + mu v); x <- x + v. Textbooks, Keras and "
            "TensorFlow in their variables; torch's x is this form's x + mu v",
            "decoupled_weight_decay": "decay apart from the gradient, as in AdamW",
        },
        valid=(
            _like({"lr": 0.05, "momentum": 0.9, "nesterov": True}, lr=0.05),
            _like(
                {"lr": 0.05, "momentum": 0.5, "nesterov": True, "weight_decay": 1e-3},
                lr=0.05,
                momentum=0.5,
                weight_decay=1e-3,
            ),
            _like(
                {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "maximize": True},
                lr=1e-3,
                maximize=True,
            ),
            _alone("torch.optim has not the look-ahead form", lr=0.05, form="lookahead"),
            _alone(_DECOUPLED, lr=0.05, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        invalid=(
            *_COMMON_INVALID,
            *_MOMENTUM_INVALID,
            Invalid({"form": "keras"}, "form must be 'torch' or 'lookahead', got 'keras'"),
        ),
    ),
    Entry(
        name="adagrad",
        label="AdaGrad",
        color="#009e73",
        constructor=Adagrad,
        rule=rules.ADAGRAD,
        lr_range=(1e-3, 1e0),
        paper="Duchi, Hazan and Singer (2011), Adaptive subgradient methods for online learning "
        "and stochastic optimization, JMLR 12",
        formula="r <- r + g^2;  x <- x - lr / (1 + (t - 1) lr_decay) g / (sqrt(r) + eps)",
        oracle=torch.optim.Adagrad,
        tolerance=_TOLERANCE,
        conventions={
            "eps_in_sqrt": "divides by sqrt(r + eps). TensorFlow, Keras, optax, with "
            "initial_accumulator_value=0.1",
            "decoupled_weight_decay": "decay apart from the gradient, as in AdamW",
        },
        valid=(
            _same(lr=0.05),
            _same(lr=0.05, lr_decay=1e-2, weight_decay=1e-3),
            _same(lr=0.05, initial_accumulator_value=0.1, eps=1e-7),
            _same(lr=1e-3, maximize=True),
            _alone(_INSIDE, lr=0.05, eps=1e-7, eps_in_sqrt=True, initial_accumulator_value=0.1),
            _alone(_DECOUPLED, lr=0.05, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        invalid=(
            *_COMMON_INVALID,
            _EPS_INVALID,
            Invalid({"lr_decay": -1.0}, r"lr_decay must be in \[0, inf\), got -1\.0"),
            Invalid(
                {"initial_accumulator_value": -0.1},
                r"initial_accumulator_value must be in \[0, inf\), got -0\.1",
            ),
        ),
    ),
    Entry(
        name="rmsprop",
        label="RMSProp",
        color="#56b4e9",
        constructor=RMSprop,
        rule=rules.RMSPROP,
        lr_range=(1e-5, 1e-1),
        paper="Tieleman and Hinton (2012), Neural networks for machine learning, lecture 6.5; "
        "centered: Graves (2013), arXiv:1308.0850",
        formula="r <- alpha r + (1 - alpha) g^2;  x <- x - lr g / (sqrt(r) + eps)",
        oracle=torch.optim.RMSprop,
        tolerance=_TOLERANCE,
        conventions={
            "eps_in_sqrt": "divides by sqrt(r + eps). TensorFlow and several textbooks",
            "initial_accumulator_value": "where r starts: 1 in TensorFlow",
            "lr_in_momentum": "v <- mu v + lr g / (sqrt(r) + eps); x <- x - v. TensorFlow",
            "decoupled_weight_decay": "decay apart from the gradient, as in AdamW",
        },
        valid=(
            _same(lr=1e-3),
            _same(lr=1e-3, alpha=0.9, weight_decay=1e-3),
            _same(lr=1e-3, momentum=0.9),
            _same(lr=1e-3, centered=True),
            _same(lr=1e-3, centered=True, momentum=0.5, weight_decay=1e-3),
            _same(lr=1e-4, maximize=True),
            _like({"lr": 1e-3, "momentum": 0.9}, lr=1e-3, momentum=0.9, lr_in_momentum=True),
            _alone(_INSIDE, lr=1e-3, alpha=0.9, eps=1e-6, eps_in_sqrt=True),
            _alone(_INSIDE, lr=1e-3, eps=1e-6, eps_in_sqrt=True, centered=True, momentum=0.5),
            _alone("torch.optim starts r at 0", lr=1e-2, initial_accumulator_value=1.0),
            _alone(_DECOUPLED, lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        invalid=(
            *_COMMON_INVALID,
            _EPS_INVALID,
            *_MOMENTUM_INVALID,
            Invalid({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1\.0"),
            Invalid({"capturable": True}, "capturable must be False"),
        ),
    ),
    Entry(
        name="adadelta",
        label="AdaDelta",
        color="#cc79a7",
        constructor=Adadelta,
        rule=rules.ADADELTA,
        lr_range=(1e-2, 1e2),
        paper="Zeiler (2012), ADADELTA: an adaptive learning rate method, arXiv:1212.5701",
        formula="r <- rho r + (1 - rho) g^2;  u = sqrt(d + eps) / sqrt(r + eps) g\n"
        "x <- x - lr u;  d <- rho d + (1 - rho) u^2",
        oracle=torch.optim.Adadelta,
        tolerance=_TOLERANCE,
        conventions={"decoupled_weight_decay": "decay apart from the gradient, as in AdamW"},
        valid=(
            _same(lr=1.0),
            _same(lr=1e-3, rho=0.95, eps=1e-7),
            _same(lr=1.0, weight_decay=1e-3),
            _same(lr=0.1, maximize=True),
            _alone(_DECOUPLED, lr=1.0, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        invalid=(
            *_COMMON_INVALID,
            _EPS_INVALID,
            Invalid({"rho": 1.0}, r"rho must be in \[0, 1\), got 1\.0"),
        ),
    ),
    Entry(
        name="adam",
        label="Adam",
        color="#0072b2",
        constructor=Adam,
        rule=rules.ADAM,
        lr_range=(1e-5, 1e-1),
        paper="Kingma and Ba (2015), Adam: a method for stochastic optimization, ICLR, "
        "arXiv:1412.6980; AMSGrad: Reddi, Kale and Kumar (2018), arXiv:1904.09237",
        formula="m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g^2\n"
        "x <- x - lr m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)",
        oracle=torch.optim.Adam,
        tolerance=_TOLERANCE,
        conventions={
            "eps_hat": "adds eps before the bias of s is corrected: lr sqrt(1 - beta2^t) / "
            "(1 - beta1^t) m / (sqrt(s) + eps). TensorFlow, the paper's efficient form",
            "eps_root": "adds it under the root. optax",
        },
        valid=(
            _same(lr=1e-3),
            _same(lr=1e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=1e-3),
            _same(lr=1e-3, amsgrad=True),
            _same(lr=1e-3, amsgrad=True, weight_decay=1e-2, decoupled_weight_decay=True),
            _same(lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
            _same(lr=1e-4, maximize=True),
            _alone("torch.optim corrects the bias before adding eps", lr=1e-3, eps_hat=True),
            _alone("torch.optim has no eps under the root", lr=1e-3, eps_root=1e-6),
        ),
        invalid=(
            *_COMMON_INVALID,
            _EPS_INVALID,
            Invalid({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1\.0"),
            Invalid({"betas": (-0.1, 0.9)}, r"betas\[0\] must be in \[0, 1\), got -0\.1"),
            Invalid({"eps_root": -1.0}, r"eps_root must be in \[0, inf\), got -1\.0"),
            Invalid({"capturable": True}, "capturable must be False"),
            Invalid({"differentiable": True}, "differentiable must be False"),
        ),
    ),
)

OPTIMIZERS: dict[str, Entry] = {row.name: row for row in _ROWS}
