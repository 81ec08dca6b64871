"""What the registry knows of an optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from thalweg.optim.base import RuleOptimizer
from thalweg.rules.rule import Rule

__all__ = ["Entry", "Invalid", "Tolerance", "Valid"]

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Valid:
    """Arguments that a constructor takes, and what checks the weights they lead to.

    Attributes:
        arguments: keyword arguments of the constructor.
        oracle: keyword arguments with which the row's torch.optim class takes the same path, or
            None where torch has no such convention.
        reason: why there is no oracle; the test then holds the formula, written out by hand.
    """

    arguments: Arguments
    oracle: Arguments | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.oracle is None) != bool(self.reason):
            raise ValueError(f"{self.arguments}: either an oracle or the reason for none")


@dataclass(frozen=True)
class Invalid:
    """Arguments that a constructor refuses with a `ValueError`, and a regex its message matches."""

    arguments: Arguments
    message: str


@dataclass(frozen=True)
class Tolerance:
    """Largest ``‖ours - oracle‖ / ‖oracle‖`` per weight tensor after 100 steps on a real network.

    Norms are Euclidean.
    """

    float32: float
    float64: float
    reason: str


@dataclass(frozen=True)
class Entry:
    """One row of the registry: all that anything which lists optimizers has to know of one.

    Attributes:
        name: what a person types.
        label: in tables and legends.
        color: ``#rrggbb``, distinct from the others also for the colour-blind, on white.
        constructor: the class in `thalweg.optim`.
        rule: what a study runs.
        lr_range: the usual learning rates; a study's default is 9 log-spaced rates over it.
        paper: where it comes from.
        formula: the update, as plain text.
        conventions: per option that torch.optim does not have, who uses it.
        valid, invalid: constructor arguments that the conformance suite runs.
        oracle: the torch.optim class that takes the same path.
        tolerance: of the comparison with the oracle.
    """

    name: str
    label: str
    color: str
    constructor: type[RuleOptimizer]
    rule: Rule
    lr_range: tuple[float, float]
    paper: str
    formula: str
    valid: tuple[Valid, ...]
    invalid: tuple[Invalid, ...]
    oracle: type[torch.optim.Optimizer]
    tolerance: Tolerance
    conventions: Mapping[str, str] = field(default_factory=dict)

    def resolved(self, arguments: Arguments) -> Rule:
        """The rule that these constructor arguments lead to, its variant chosen."""
        built = self.constructor([torch.zeros(())], **arguments)
        group = built.param_groups[0]
        return built.rule_of(group).resolve(group)

    def state(self, arguments: Arguments) -> tuple[str, ...]:
        """Names of the state kept per element, as ``state_dict`` has them."""
        return self.resolved(arguments).state

    def bytes_a_parameter(self, arguments: Arguments) -> int:
        """Bytes of state per float32 parameter."""
        return 4 * len(self.state(arguments))

    def needs_closure(self, arguments: Arguments) -> bool:
        """Whether ``step`` has to evaluate the gradient at a point of its own."""
        return self.resolved(arguments).point is not None
