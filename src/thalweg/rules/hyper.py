"""Hyperparameters that many rules share."""

from thalweg.rules.rule import Number

__all__ = ["betas", "decay", "eps", "lr", "unit"]


def lr(default: float, meaning: str = "learning rate; a tensor of one element too") -> Number:
    """Learning rate."""
    return Number("lr", default, low=0.0, meaning=meaning)


def eps(default: float, meaning: str = "added to the root, against division by zero") -> Number:
    """Guard against division by zero."""
    return Number("eps", default, low=0.0, meaning=meaning)


def unit(name: str, default: float, meaning: str) -> Number:
    """A number in [0, 1)."""
    return Number(name, default, low=0.0, high=1.0, high_open=True, meaning=meaning)


def betas(*default: float, meaning: str = "decay of the averages of g and g²") -> Number:
    """Decay rates of moving averages."""
    return Number("betas", default, low=0.0, high=1.0, high_open=True, meaning=meaning)


def decay(default: float) -> Number:
    """Weight decay, where it is not 0 by default."""
    return Number("weight_decay", default, low=0.0, meaning="decay of the weights")
