"""All optimizers, by the name that a person types.

The conformance suite, the command line's choices, the reference page and the report's legend read
this table, and nothing else lists optimizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any, TypeAlias

from thalweg.errors import ArgumentError
from thalweg.optim import classes
from thalweg.optim.base import RuleOptimizer, from_rule
from thalweg.rules.rule import Rule

__all__ = ["BUILT_IN", "MAIN", "OPTIMIZERS", "Entry", "Named", "enter", "entry_of", "key"]

# Okabe and Ito's, and black's grey: told apart by the colour-blind too, on white.
_COLORS = ("#4d4d4d", "#e69f00", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#0072b2")

# Those that a study compares unless told otherwise.
MAIN = ("sgd", "momentum", "nag", "adagrad", "rmsprop", "adadelta", "adam")


@dataclass(frozen=True)
class Entry:
    """One optimizer, as everything that lists optimizers sees it.

    Attributes:
        name: what a person types.
        constructor: the class in `thalweg.optim`, or one's own.
        color: ``#rrggbb``; distinct among those of `MAIN`.
    """

    name: str
    constructor: type[RuleOptimizer]
    color: str

    @property
    def rule(self) -> Rule:
        """What a study runs."""
        return self.constructor.rule

    @property
    def label(self) -> str:
        """In tables and legends."""
        return self.rule.name

    @property
    def lr_range(self) -> tuple[float, float]:
        """The usual learning rates."""
        return self.rule.lr_range

    def resolved(self, arguments: Mapping[str, Any], shape: tuple[int, ...] = (1024, 1024)) -> Rule:
        """The rule that a parameter of this shape follows with these constructor arguments."""
        return self.rule.resolve(self.constructor.hyperparameters([], **arguments), shape)

    def bytes_a_parameter(self, arguments: Mapping[str, Any]) -> float:
        """Bytes of state for each float32 of a matrix of 1024 by 1024."""
        shape = (1024, 1024)
        rule = self.resolved(arguments, shape)
        return sum(
            _bytes(rule, name, arguments.get("state"))
            * prod(rule.shapes[name](shape) if name in rule.shapes else shape)
            for name in rule.state
        ) / prod(shape)

    def needs_closure(self, arguments: Mapping[str, Any]) -> bool:
        """Whether ``step`` has to evaluate the gradient at a point of its own."""
        return self.resolved(arguments).point is not None


def _bytes(rule: Rule, name: str, asked: str | None) -> float:
    """Of each element of a state."""
    if asked is None or name not in rule.moments:
        return 4.0
    return 2.0 if asked == "bfloat16" or rule.moments[name] is None else 1 + 4 / 256


def key(name: object) -> str:
    """How a name is looked up: ``Schedule-Free SGD`` and ``schedulefreesgd`` are one."""
    return "".join(c for c in str(name).lower() if c.isalnum())


def _entry(constructor: type[RuleOptimizer], place: int) -> Entry:
    return Entry(key(constructor.__name__), constructor, _COLORS[place % len(_COLORS)])


def _all() -> dict[str, Entry]:
    # In the order in which the module defines them, which is by family.
    by_name = {key(name): c for name, c in vars(classes).items() if name in classes.__all__}
    first = {name: by_name.pop(name) for name in MAIN}
    rows = [_entry(constructor, i) for i, constructor in enumerate((first | by_name).values())]
    return {row.name: row for row in rows}


OPTIMIZERS: dict[str, Entry] = _all()
BUILT_IN = tuple(OPTIMIZERS)  # to which a person's own are added


def enter(own: Rule | type[RuleOptimizer]) -> Entry:
    """Take in an optimizer of one's own, for studies and their reports.

    Raises:
        ValueError: if there is another optimizer of that name.
    """
    constructor = from_rule(own) if isinstance(own, Rule) else own
    made = _entry(constructor, len(OPTIMIZERS))
    found = OPTIMIZERS.setdefault(made.name, made)
    if found.rule != constructor.rule:
        raise ValueError(f"there is another optimizer named {made.name!r}; rename yours")
    return found


# What a person may ask for as an optimizer.
Named: TypeAlias = str | Rule | type[RuleOptimizer]


def entry_of(
    optimizer: Any, argument: str = "optimizer", error: type[ArgumentError] = ArgumentError
) -> Entry:
    """The optimizer that a person means; one of their own is taken in.

    Args:
        optimizer: what is given as `Named`: its name, a rule, or the class of one.
        argument: that it was given as.
        error: what is raised if there is none.
    """
    if isinstance(optimizer, str):
        if found := OPTIMIZERS.get(key(optimizer)):
            return found
        near = get_close_matches(key(optimizer), OPTIMIZERS, 1)
        meant = f"did you mean {near[0]}?" if near else f"choose from {', '.join(OPTIMIZERS)}"
        raise error(argument, f"there is no {optimizer!r}; {meant}")
    own = isinstance(optimizer, type) and issubclass(optimizer, RuleOptimizer)
    if not isinstance(optimizer, Rule) and not own:
        raise error(argument, f"must be a name, a rule or its class, got {optimizer!r}")
    try:
        return enter(optimizer)
    except ValueError as problem:
        raise error(argument, str(problem)) from None
