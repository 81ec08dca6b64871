"""Activation functions: what torch calls them, and where they pass no gradient."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FLAT", "FUNCTIONS", "KINDS", "RECTIFIERS", "SATURATED", "curve", "kind_of_call"]

FLAT = 0.05  # a derivative below this share of its largest value counts as none

_ROOT = (1 - FLAT) ** 0.5
# Outputs at or beyond which the derivative is below `FLAT` of its maximum: tanh' = 1 - y²,
# sigmoid' = y (1 - y), softsign' = (1 - |y|)²; the hard sigmoid has none at its ends.
SATURATED: Mapping[str, tuple[float, float]] = {
    "Tanh": (-_ROOT, _ROOT),
    "Sigmoid": ((1 - _ROOT) / 2, (1 + _ROOT) / 2),
    "Softsign": (FLAT**0.5 - 1, 1 - FLAT**0.5),
    "Hardsigmoid": (0.0, 1.0),
}

# A unit of these that is negative for every sample has no gradient, and so stays as it is.
RECTIFIERS = frozenset({"ReLU", "ReLU6"})

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Sigmoid,
    nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish,
)  # fmt: skip
KINDS: Mapping[type[nn.Module], str] = {module: module.__name__ for module in _MODULES}

FUNCTIONS: Mapping[Any, str] = {
    function: kind
    for kind, functions in {
        "ReLU": (
            torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu,
        ),
        "ReLU6": (functional.relu6,),
        "LeakyReLU": (functional.leaky_relu, functional.leaky_relu_),
        "PReLU": (torch.prelu, Tensor.prelu, functional.prelu),
        "RReLU": (torch.rrelu, torch.rrelu_, functional.rrelu),
        "ELU": (functional.elu, functional.elu_),
        "SELU": (torch.selu, torch.selu_, functional.selu),
        "CELU": (torch.celu, torch.celu_, functional.celu),
        "GELU": (functional.gelu,),
        "SiLU": (functional.silu,),
        "Mish": (functional.mish,),
        "Softplus": (functional.softplus,),
        "Softsign": (functional.softsign,),
        "Tanh": (torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, functional.tanh),
        "Hardtanh": (functional.hardtanh, functional.hardtanh_),
        "Sigmoid": (
            torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, functional.sigmoid,
            torch.special.expit,
        ),
        "LogSigmoid": (functional.logsigmoid,),
        "Hardsigmoid": (functional.hardsigmoid,),
        "Hardswish": (functional.hardswish,),
    }.items()
    for function in functions
}  # fmt: skip

# Which are a ReLU if they cut at 0 and nowhere else.
_CLAMPS: Mapping[Any, tuple[str, ...]] = {
    torch.clamp: ("min", "max"),
    Tensor.clamp: ("min", "max"),
    Tensor.clamp_: ("min", "max"),
    torch.clip: ("min", "max"),
    Tensor.clip: ("min", "max"),
    torch.clamp_min: ("min",),
    Tensor.clamp_min: ("min",),
    Tensor.clamp_min_: ("min",),
}


def kind_of_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Which activation a call of torch is, if it is one."""
    kind = FUNCTIONS.get(function)
    if kind is not None or function not in _CLAMPS:
        return kind
    bounds = dict(zip(_CLAMPS[function], args[1:], strict=False)) | dict(kwargs)
    low, high = bounds.get("min"), bounds.get("max")
    cuts_at_zero = isinstance(low, int | float) and low == 0 and high is None
    return "ReLU" if cuts_at_zero else None


def curve(
    function: Callable[[Tensor], Tensor] = torch.tanh, low: float = -6.0, high: float = 6.0
) -> pd.DataFrame:
    """An activation function, its derivative, and where that vanishes.

    Of tanh at x = 4 the derivative is 0.0013: what comes back through such a unit is a thousandth.

    Args:
        function: elementwise.
        low: end of the interval, of which 481 points are looked at.
        high: its other end.

    Returns:
        A row a point: ``x, value, derivative, flat``, the last whether the derivative is below
        `FLAT` of its largest value on the interval.
    """
    x = torch.linspace(low, high, 481, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = function(x)
        (derivative,) = torch.autograd.grad(value.sum(), x)
    slope = derivative.numpy()
    return pd.DataFrame(
        {
            "x": x.detach().numpy(),
            "value": value.detach().numpy(),
            "derivative": slope,
            "flat": np.abs(slope) < FLAT * np.abs(slope).max(),
        }
    )
