"""What an update rule is: names for its hyperparameters and state, and two pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

__all__ = ["Choice", "Flag", "HyperparameterError", "Number", "Rule", "prepare"]

Hyper: TypeAlias = Mapping[str, Any]
Row: TypeAlias = tuple[float, ...]


class HyperparameterError(ValueError):
    """A hyperparameter outside its range; the message names it, the value and the range."""


@dataclass(frozen=True)
class Number:
    """A real hyperparameter, or with a tuple as default a vector of them (``betas``).

    The range is closed at a bound unless ``low_open`` or ``high_open`` says otherwise; infinities
    and NaN are always outside.
    """

    name: str
    default: float | tuple[float, ...]
    low: float = float("-inf")
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False

    @property
    def range(self) -> str:
        """The range as a person writes it: ``[0, 1)``."""
        opening = "(" if self.low_open or self.low == float("-inf") else "["
        closing = ")" if self.high_open or self.high == float("inf") else "]"
        return f"{opening}{self.low:g}, {self.high:g}{closing}"

    def check(self, owner: str, value: Any) -> None:
        """Raise `HyperparameterError` unless the value, or each of its entries, is in range."""
        if not isinstance(self.default, tuple):
            self._check_one(owner, self.name, value)
            return
        if not isinstance(value, tuple | list) or len(value) != len(self.default):
            raise HyperparameterError(
                f"{owner}: {self.name} must be {len(self.default)} numbers in {self.range}, "
                f"got {value!r}"
            )
        for i, entry in enumerate(value):
            self._check_one(owner, f"{self.name}[{i}]", entry)

    def _check_one(self, owner: str, name: str, value: Any) -> None:
        number = _as_float(value)
        if number is None:
            raise HyperparameterError(
                f"{owner}: {name} must be a number in {self.range}, got {value!r}"
            )
        above = self.low < number if self.low_open else self.low <= number
        below = number < self.high if self.high_open else number <= self.high
        if not (above and below and abs(number) != float("inf")):
            raise HyperparameterError(f"{owner}: {name} must be in {self.range}, got {value!r}")


@dataclass(frozen=True)
class Flag:
    """A hyperparameter that is true or false."""

    name: str
    default: bool = False
    range: str = "True or False"

    def check(self, owner: str, value: Any) -> None:
        """Raise `HyperparameterError` unless the value is a bool."""
        if not isinstance(value, bool):
            raise HyperparameterError(f"{owner}: {self.name} must be {self.range}, got {value!r}")


@dataclass(frozen=True)
class Choice:
    """A hyperparameter that is one of a few words."""

    name: str
    default: str
    options: tuple[str, ...]

    @property
    def range(self) -> str:
        """The options, listed."""
        return " or ".join(repr(option) for option in self.options)

    def check(self, owner: str, value: Any) -> None:
        """Raise `HyperparameterError` unless the value is one of the options."""
        if value not in self.options:
            raise HyperparameterError(f"{owner}: {self.name} must be {self.range}, got {value!r}")


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool | str):
        return None
    if isinstance(value, Real):
        return float(value)
    # A learning rate may be a tensor of one element, as with torch.optim.
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


# What every rule takes besides its own: the gradient's sign and two ways of decaying weights.
COMMON: tuple[Number | Flag, ...] = (
    Number("weight_decay", 0.0, low=0.0),
    Flag("decoupled_weight_decay"),
    Flag("maximize"),
)


def prepare(p: Any, g: Any, sign: Any, coupled: Any, shrink: Any) -> Any:
    """What happens before any rule's update: the gradient's sign and the decay of weights.

    Coupled decay adds ``weight_decay * p`` to the gradient, decoupled decay multiplies the
    parameter by ``1 - lr * weight_decay`` (Loshchilov and Hutter, 2019, arXiv:1711.05101, line 12
    of algorithm 2).
    """
    return shrink * p, sign * g + coupled * p


def _never(hyper: Hyper) -> float:
    return float("inf")


@dataclass(frozen=True)
class Rule:
    """An update rule, from which every executor is made.

    Attributes:
        name: as messages print it.
        hyper: the rule's own hyperparameters; `COMMON` are added to them.
        state: names of the state kept per element, as ``state_dict`` has them.
        coefficients: ``(hyper, step) -> tuple of floats``, everything that does not depend on the
            element; runs once a step on the host in float64, ``step`` counting from 1.
        update: ``(p, g, *state, *coefficients) -> (p, *state)``, the elementwise maths, with
            ``+ - * / **`` and the functions of `thalweg.rules.maths`.
        initial: ``hyper -> value`` for a state that does not start at zero.
        point: ``(p, *state, *coefficients) -> p``, where the gradient is taken if not at ``p``.
        variant: ``hyper -> Rule`` when some hyperparameters change which state is kept.
        settles: ``hyper -> step`` from which the coefficients stay the same, infinity if they
            never do; so that a loop need not ask for them again.
    """

    name: str
    hyper: tuple[Number | Flag | Choice, ...]
    state: tuple[str, ...]
    coefficients: Callable[[Hyper, int], Row]
    update: Callable[..., tuple[Any, ...]]
    initial: Mapping[str, Callable[[Hyper], float]] = field(default_factory=dict)
    point: Callable[..., Any] | None = None
    variant: Callable[[Hyper], "Rule"] | None = None
    settles: Callable[[Hyper], float] = _never

    def __hash__(self) -> int:
        """By identity of the maths, so that rules can key caches."""
        return hash((self.name, self.state, self.update))

    @property
    def defaults(self) -> dict[str, Any]:
        """Default of every hyperparameter, the common ones included."""
        return {h.name: h.default for h in (*self.hyper, *COMMON)}

    def check(self, hyper: Hyper, owner: str | None = None) -> None:
        """Raise `HyperparameterError` for an unknown name or a value outside its range."""
        known = {h.name: h for h in (*self.hyper, *COMMON)}
        for name, value in hyper.items():
            if name not in known:
                raise HyperparameterError(
                    f"{owner or self.name}: there is no hyperparameter {name!r}; "
                    f"it has {', '.join(known)}"
                )
            known[name].check(owner or self.name, value)

    def complete(self, hyper: Hyper) -> dict[str, Any]:
        """The given hyperparameters, checked, with defaults for the rest."""
        self.check(hyper)
        return {**self.defaults, **hyper}

    def resolve(self, hyper: Hyper) -> "Rule":
        """The rule whose state and maths these (complete) hyperparameters ask for."""
        return self.variant(hyper) if self.variant else self

    def row(self, hyper: Hyper, step: int) -> Row:
        """``(sign, coupled, shrink, *coefficients)`` for one step, float64.

        Args:
            hyper: complete hyperparameters.
            step: counting from 1.
        """
        decay = hyper["weight_decay"]
        decoupled = hyper["decoupled_weight_decay"]
        return (
            -1.0 if hyper["maximize"] else 1.0,
            0.0 if decoupled else float(decay),
            1.0 - float(hyper["lr"]) * decay if decoupled else 1.0,
            *(float(c) for c in self.coefficients(hyper, step)),
        )

    def start(self, hyper: Hyper) -> tuple[float, ...]:
        """Initial value of each state."""
        return tuple(self.initial[s](hyper) if s in self.initial else 0.0 for s in self.state)
