"""What every optimizer of the registry is held against: arguments, oracles, refusals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from thalweg.optim.registry import OPTIMIZERS, Entry

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Valid:
    """Arguments that a constructor takes, and what checks the weights they lead to.

    Attributes:
        arguments: keyword arguments of the constructor.
        oracle: keyword arguments with which the oracle's class takes the same path, or None where
            it has no such convention.
        reason: why there is no oracle; the test then holds the formula, written out by hand.
        undetermined: why two right implementations part on the network, if they do.
    """

    arguments: Arguments
    oracle: Arguments | None = None
    reason: str = ""
    undetermined: str = ""

    def __post_init__(self):
        if (self.oracle is None) != bool(self.reason):
            raise ValueError(f"{self.arguments}: either an oracle or the reason for none")


@dataclass(frozen=True)
class Invalid:
    """Arguments that a constructor refuses with a `ValueError`, and a regex its message matches."""

    arguments: Arguments
    message: str


@dataclass(frozen=True)
class Case:
    """One optimizer, with what its tests need.

    Attributes:
        entry: of the registry.
        oracle: the class of torch.optim that takes the same path, or None.
        tolerance: largest ``‖ours - oracle‖ / ‖oracle‖`` per weight tensor after 100 steps on a
            real network, in float32 and in float64.
        reason: of the tolerance.
    """

    entry: Entry
    oracle: type[torch.optim.Optimizer] | None
    valid: tuple[Valid, ...]
    invalid: tuple[Invalid, ...]
    tolerance: tuple[float, float] = (1e-5, 1e-12)
    reason: str = (
        "both round the same sums in different order and fuse different products, a few units in "
        "the last place a step, which 100 steps of a network amplify"
    )

    @property
    def name(self):
        return self.entry.name

    @property
    def constructor(self):
        return self.entry.constructor

    @property
    def rule(self):
        return self.entry.rule

    @property
    def lr_range(self):
        return self.entry.lr_range

    @property
    def resolved(self):
        return self.entry.resolved


def _same(**arguments: Any) -> Valid:
    """The oracle takes the same arguments."""
    return Valid(arguments, arguments)


def _like(oracle: dict[str, Any], **arguments: Any) -> Valid:
    """The oracle takes the same path with other arguments."""
    return Valid(arguments, oracle)


def _alone(reason: str, **arguments: Any) -> Valid:
    """The oracle has no such convention."""
    return Valid(arguments, None, reason)


def _paper(**arguments: Any) -> Valid:
    """torch.optim has no such optimizer: its formula from the paper."""
    return Valid(arguments, None, "torch.optim does not have it")


_DECOUPLED = "torch.optim has decoupled decay in Adam, NAdam and RAdam alone"
_INSIDE = "torch.optim has eps outside the root"
_COMMON_INVALID = (
    Invalid({"lr": -0.1}, r"lr must be in \[0, inf\), got -0\.1"),
    Invalid({"lr": float("nan")}, r"lr must be in \[0, inf\), got nan"),
    Invalid({"weight_decay": -1.0}, r"weight_decay must be in \[0, inf\), got -1\.0"),
    Invalid({"clip_norm": 0.0}, r"clip_norm must be in \(0, inf\) or None, got 0\.0"),
    Invalid({"clip_value": -1.0}, r"clip_value must be in \(0, inf\) or None, got -1\.0"),
    Invalid({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\) or None, got 1\.0"),
    Invalid({"state": "4bit"}, "state must be None or 'bfloat16' or '8bit', got '4bit'"),
)
_EPS_INVALID = Invalid({"eps": -1e-8}, r"eps must be in \[0, inf\), got -1e-08")
_MOMENTUM_INVALID = (
    Invalid({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
    Invalid({"momentum": -0.5}, r"momentum must be in \[0, 1\), got -0\.5"),
)
_DIFFERENTIABLE = Invalid({"differentiable": True}, "differentiable must be False")


def _betas_invalid(*good: float) -> tuple[Invalid, ...]:
    return tuple(
        Invalid(
            {"betas": (*good[:i], 1.0, *good[i + 1 :])}, rf"betas\[{i}\] must be in .*, got 1\.0"
        )
        for i in range(len(good))
    )


_BETAS_INVALID = _betas_invalid(0.9, 0.999)

_CASES: dict[str, dict[str, Any]] = {
    "sgd": {
        "oracle": torch.optim.SGD,
        "valid": (
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
        "invalid": (
            *_MOMENTUM_INVALID,
            Invalid({"nesterov": True}, "nesterov needs a momentum above 0 and dampening 0"),
            _DIFFERENTIABLE,
        ),
    },
    "momentum": {
        "oracle": torch.optim.SGD,
        "valid": (
            _like({"lr": 0.05, "momentum": 0.9}, lr=0.05),
            _same(lr=0.05, momentum=0.5, dampening=0.3, weight_decay=1e-3),
            _same(lr=1e-3, momentum=0.9, maximize=True),
            _like({"lr": 0.05, "momentum": 0.9}, lr=0.05, form="sutskever"),
            # The average is 1 - mu times the sum.
            _like({"lr": 0.05, "momentum": 0.9}, lr=0.5, form="ewma"),
            _alone("torch.optim has no moving average", lr=0.5, form="ewma", bias_correction=True),
            _alone(_DECOUPLED, lr=0.05, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        "invalid": (
            *_MOMENTUM_INVALID,
            Invalid({"form": "polyak"}, "form must be 'torch' or 'sutskever' or 'ewma'"),
        ),
    },
    "nag": {
        "oracle": torch.optim.SGD,
        "valid": (
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
            _like({"lr": 0.05, "momentum": 0.9, "nesterov": True}, lr=0.05, form="sutskever"),
            _alone("torch.optim has not the look-ahead form", lr=0.05, form="lookahead"),
            _alone(_DECOUPLED, lr=0.05, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        "invalid": (
            *_MOMENTUM_INVALID,
            Invalid({"form": "keras"}, "form must be 'torch' or 'sutskever' or 'lookahead'"),
        ),
    },
    "adagrad": {
        "oracle": torch.optim.Adagrad,
        "valid": (
            _same(lr=0.05),
            _same(lr=0.05, lr_decay=1e-2, weight_decay=1e-3),
            _same(lr=0.05, initial_accumulator_value=0.1, eps=1e-7),
            _same(lr=1e-3, maximize=True),
            _alone(_INSIDE, lr=0.05, eps=1e-7, eps_in_sqrt=True, initial_accumulator_value=0.1),
            _alone(_DECOUPLED, lr=0.05, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        "invalid": (
            _EPS_INVALID,
            Invalid({"lr_decay": -1.0}, r"lr_decay must be in \[0, inf\), got -1\.0"),
            Invalid(
                {"initial_accumulator_value": -0.1},
                r"initial_accumulator_value must be in \[0, inf\), got -0\.1",
            ),
        ),
        "tolerance": (1e-3, 1e-12),
        "reason": "the first step is as long as the rate, however small the gradient; its rounding "
        "turns the sign of some",
    },
    "rmsprop": {
        "oracle": torch.optim.RMSprop,
        "valid": (
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
        "invalid": (
            _EPS_INVALID,
            *_MOMENTUM_INVALID,
            Invalid({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1\.0"),
        ),
    },
    "adadelta": {
        "oracle": torch.optim.Adadelta,
        "valid": (
            _same(lr=1.0),
            _same(lr=1e-3, rho=0.95, eps=1e-7),
            _same(lr=1.0, weight_decay=1e-3),
            _same(lr=0.1, maximize=True),
            _alone(_DECOUPLED, lr=1.0, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        "invalid": (_EPS_INVALID, Invalid({"rho": 1.0}, r"rho must be in \[0, 1\), got 1\.0")),
    },
    "adam": {
        "oracle": torch.optim.Adam,
        "valid": (
            _same(lr=1e-3),
            _same(lr=1e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=1e-3),
            _same(lr=1e-3, amsgrad=True),
            _same(lr=1e-3, amsgrad=True, weight_decay=1e-2, decoupled_weight_decay=True),
            _same(lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
            _same(lr=1e-4, maximize=True),
            _alone("torch.optim corrects the bias before adding eps", lr=1e-3, eps_hat=True),
            _alone("torch.optim has no eps under the root", lr=1e-3, eps_root=1e-6),
        ),
        "invalid": (
            _EPS_INVALID,
            *_BETAS_INVALID,
            Invalid({"betas": (-0.1, 0.9)}, r"betas\[0\] must be in \[0, 1\), got -0\.1"),
            Invalid({"eps_root": -1.0}, r"eps_root must be in \[0, inf\), got -1\.0"),
            _DIFFERENTIABLE,
        ),
    },
    "adamw": {
        "oracle": torch.optim.AdamW,
        "valid": (
            _same(lr=1e-3),
            _same(lr=1e-3, weight_decay=0.1, betas=(0.8, 0.99)),
            _same(lr=1e-3, amsgrad=True),
            _same(lr=1e-4, maximize=True),
            _alone("torch.optim multiplies the decay by lr", lr=1e-3, decay_by_lr=False),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
    "nadam": {
        "oracle": torch.optim.NAdam,
        "valid": (
            _same(lr=1e-3),
            _same(lr=1e-3, betas=(0.8, 0.99), momentum_decay=0.1, weight_decay=1e-3),
            _same(lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
            _same(lr=1e-4, maximize=True),
            _paper(lr=1e-3, momentum_decay=float("inf")),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
        "tolerance": (1e-5, 1e-6),
        "reason": "torch keeps the product of its schedule in float32",
    },
    "radam": {
        "oracle": torch.optim.RAdam,
        "valid": (
            _same(lr=1e-3),
            _same(lr=1e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=1e-3),
            _same(lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
            # Never rectified: rho stays below 5.
            _same(lr=1e-2, betas=(0.5, 0.6)),
            _same(lr=1e-4, maximize=True),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
    "adamax": {
        "oracle": torch.optim.Adamax,
        "valid": (
            _same(lr=1e-3),
            _same(lr=1e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=1e-3),
            _same(lr=1e-4, maximize=True),
            _alone(_DECOUPLED, lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
    "rprop": {
        "oracle": torch.optim.Rprop,
        "valid": (
            _same(lr=1e-3),
            _same(lr=1e-3, etas=(0.3, 1.1), step_sizes=(1e-5, 1e-2)),
            _same(lr=1e-4, maximize=True),
        ),
        "invalid": (
            Invalid({"etas": (1.5, 1.2)}, r"etas must be a number in \(0, 1\) and one above 1"),
            Invalid({"step_sizes": (1.0, 0.1)}, "step_sizes must be the least and the largest"),
        ),
        "tolerance": (1e-3, 1e-12),
        "reason": "a gradient that rounds to another sign changes a step by a fifth or a half",
    },
    "asgd": {
        "oracle": torch.optim.ASGD,
        "valid": (
            _same(lr=0.05),
            _same(lr=0.05, lambd=1e-2, alpha=0.5, weight_decay=1e-3),
            _same(lr=1e-3, maximize=True),
        ),
        "invalid": (Invalid({"alpha": -1.0}, r"alpha must be in \[0, inf\), got -1\.0"),),
        "tolerance": (1e-5, 1e-6),
        "reason": "torch keeps its rate in float32",
    },
    "adan": {
        "valid": (
            _paper(lr=1e-3),
            _paper(lr=1e-3, betas=(0.9, 0.8, 0.95), weight_decay=0.02),
            _paper(lr=1e-3, weight_decay=0.02, no_prox=True),
            _paper(lr=1e-4, maximize=True),
        ),
        "invalid": (_EPS_INVALID, *_betas_invalid(0.98, 0.92, 0.99)),
    },
    "ademamix": {
        "valid": (
            _paper(lr=1e-3),
            _paper(lr=1e-3, alpha=5.0, betas=(0.8, 0.99, 0.999), weight_decay=0.02),
            _paper(lr=1e-3, alpha_warmup=50, beta3_warmup=60),
            _paper(lr=1e-4, maximize=True),
        ),
        "invalid": (
            _EPS_INVALID,
            *_betas_invalid(0.9, 0.999, 0.9999),
            Invalid({"alpha": -1.0}, r"alpha must be in \[0, inf\), got -1\.0"),
        ),
    },
    "adopt": {
        "valid": (
            _paper(lr=1e-3),
            _paper(lr=1e-3, betas=(0.8, 0.99), weight_decay=0.01),
            _paper(lr=1e-3, weight_decay=0.02, decoupled_weight_decay=True),
            _paper(lr=1e-3, clip=False, eps=1e-2),
            _paper(lr=1e-4, maximize=True),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
    "signum": {
        "valid": (
            _paper(lr=1e-3),
            _paper(lr=1e-3, momentum=0.5, weight_decay=0.01),
            _paper(lr=1e-4, maximize=True),
        ),
        "invalid": _MOMENTUM_INVALID,
        "tolerance": (1e-2, 1e-12),
        "reason": "an average that rounds to another sign changes a step by twice its length",
    },
    "tiger": {
        "valid": (_paper(lr=1e-3), _paper(lr=1e-3, momentum=0.9, weight_decay=0.1)),
        "invalid": _MOMENTUM_INVALID,
        "tolerance": (1e-2, 1e-12),
        "reason": "as Signum",
    },
    "lion": {
        "valid": (
            _paper(lr=1e-3),
            _paper(lr=1e-3, betas=(0.8, 0.95), weight_decay=0.1),
            _paper(lr=1e-4, maximize=True),
        ),
        "invalid": _BETAS_INVALID,
        "tolerance": (1e-2, 1e-12),
        "reason": "as Signum",
    },
    "schedulefreesgd": {
        "valid": (
            _paper(lr=0.1),
            _paper(lr=0.1, momentum=0.8, weight_decay=1e-3, warmup_steps=20),
            _paper(lr=0.1, r=1.0, weight_lr_power=1.0),
        ),
        "invalid": (
            Invalid({"momentum": 0.0}, r"momentum must be in \(0, 1\), got 0\.0"),
            Invalid({"warmup_steps": 1.5}, r"warmup_steps must be a whole number in"),
        ),
    },
    "schedulefreeadamw": {
        "valid": (
            _paper(lr=2.5e-3),
            _paper(lr=2.5e-3, betas=(0.8, 0.99), weight_decay=0.01, warmup_steps=20),
            _paper(lr=1e-3, r=1.0, weight_lr_power=1.0),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
    "prodigy": {
        "valid": (
            _paper(lr=1.0),
            _paper(lr=0.5, weight_decay=0.01, use_bias_correction=True, d_coef=0.5),
            _paper(lr=1.0, weight_decay=0.01, decouple=False, beta3=0.9),
            _paper(lr=1.0, safeguard_warmup=True, growth_rate=1.02, d0=1e-4),
        ),
        "invalid": (
            _EPS_INVALID,
            *_BETAS_INVALID,
            Invalid({"d0": 0.0}, r"d0 must be in \(0, inf\), got 0\.0"),
        ),
        "tolerance": (1e-1, 1e-9),
        "reason": "the estimate multiplies its own rounding from step to step; in float32 the "
        "paths part, in float64 they agree",
    },
    "dadaptadam": {
        "valid": (
            _paper(lr=1.0),
            _paper(lr=0.5, weight_decay=0.01, use_bias_correction=True, decouple=True),
            _paper(lr=1.0, weight_decay=0.01, growth_rate=1.5, d0=1e-4),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
        "tolerance": (1e-1, 1e-9),
        "reason": "as Prodigy",
    },
    "lars": {
        "valid": (
            _paper(lr=1.0),
            _paper(lr=1.0, momentum=0.5, weight_decay=0.01, trust_coefficient=0.01),
            _paper(lr=1.0, nesterov=True),
            _paper(lr=0.1, maximize=True),
        ),
        "invalid": (*_MOMENTUM_INVALID, _EPS_INVALID),
    },
    "lamb": {
        "valid": (
            _paper(lr=1e-3),
            _paper(lr=1e-3, betas=(0.8, 0.99), weight_decay=0.05),
            _paper(lr=1e-3, bias_correction=False),
            _paper(lr=1e-4, maximize=True),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
    "adafactor": {
        "oracle": torch.optim.Adafactor,
        "valid": (
            _same(lr=1e-2),
            _same(lr=1e-2, beta2_decay=-0.5, weight_decay=0.1),
            _same(lr=0.05, eps=(1e-8, 1e-2), d=2.0),
            _same(lr=1e-3, maximize=True),
        ),
        "invalid": (
            Invalid({"beta2_decay": 0.5}, r"beta2_decay must be in \(-inf, 0\], got 0\.5"),
            Invalid({"d": 0.0}, r"d must be in \(0, inf\), got 0\.0"),
        ),
    },
    "muon": {
        "valid": (
            _paper(lr=1e-2, ns_dtype="parameter"),
            _paper(lr=1e-2, ns_dtype="parameter", nesterov=False, weight_decay=0.0, momentum=0.9),
            _paper(lr=1e-2, ns_dtype="parameter", adjust_lr_fn="match_rms_adamw", ns_steps=3),
        ),
        "invalid": (
            *_MOMENTUM_INVALID,
            Invalid({"ns_steps": 0}, r"ns_steps must be in \[1, 99\], got 0"),
            Invalid({"adjust_lr_fn": "moonlight"}, "adjust_lr_fn must be None or 'original'"),
        ),
        "tolerance": (1e-3, 1e-12),
        "reason": "five steps of the iteration multiply rounding by 3.4 each",
    },
    "shampoo": {
        "valid": (
            _paper(lr=0.05, epsilon=1e-2),
            _paper(lr=0.05, epsilon=1e-2, momentum=0.9, weight_decay=1e-3),
            _paper(lr=0.05, epsilon=1e-2, update_freq=7),
        ),
        "invalid": (
            *_MOMENTUM_INVALID,
            Invalid({"epsilon": 0.0}, r"epsilon must be in \(0, inf\), got 0\.0"),
        ),
        "tolerance": (1e-2, 1e-12),
        "reason": "roots of matrices whose eigenvalues differ by 1e6",
    },
    "soap": {
        "valid": (
            replace(
                _paper(lr=3e-3),
                undetermined="pixels that are always zero leave eigenvalues of zero, whose "
                "eigenvectors are anybody's choice; test_formulas.py has matrices without",
            ),
            # Turned is here the side of the ten outputs alone. Its one eigenvalue of zero is of a
            # direction without gradient, whose rounding an eps of 1e-8 would make steps of.
            _paper(
                lr=3e-3,
                eps=1e-3,
                max_precond_dim=20,
                shampoo_beta=0.8,
                weight_decay=0.0,
                precondition_frequency=3,
            ),
            _paper(lr=3e-3, eps=1e-3, correct_bias=False, max_precond_dim=20),
        ),
        "invalid": (_EPS_INVALID, *_BETAS_INVALID),
    },
}

CASES: dict[str, Case] = {
    name: Case(
        entry,
        _CASES[name].get("oracle"),
        _CASES[name]["valid"],
        (*_COMMON_INVALID, *_CASES[name]["invalid"]),
        **{k: v for k, v in _CASES[name].items() if k in ("tolerance", "reason")},
    )
    for name, entry in OPTIMIZERS.items()
}
ROWS = pytest.mark.parametrize("entry", CASES.values(), ids=lambda case: case.name)
# Those that torch.optim has too, at least by the first of their arguments.
TORCHS = [case for case in CASES.values() if case.oracle and case.valid[0].oracle]
TORCH_ROWS = pytest.mark.parametrize("entry", TORCHS, ids=lambda case: case.name)
# One of each kind of rule, where each would be compiled once more for the sake of its storage.
_KINDS = "sgd nag adam asgd lion schedulefreeadamw prodigy lamb adafactor muon"
KINDS = pytest.mark.parametrize(
    "entry", [CASES[name] for name in _KINDS.split()], ids=lambda case: case.name
)
# Every optimizer with every set of arguments that it is said to take.
ALL = [(case, valid) for case in CASES.values() for valid in case.valid]


def name_of(pair):
    case, valid = pair
    return f"{case.name}-" + "-".join(f"{k}={v}" for k, v in valid.arguments.items())
