"""What an update rule is: names for its hyperparameters and state, and a few pure functions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from thalweg.rules.maths import maximum, minimum, where

__all__ = [
    "HEAD",
    "PARAMETER",
    "Choice",
    "Flag",
    "Hyper",
    "HyperparameterError",
    "Number",
    "Row",
    "Rule",
    "Sums",
    "decay",
    "prepare",
]

Hyper: TypeAlias = Mapping[str, Any]
Row: TypeAlias = tuple[float, ...]
Shape: TypeAlias = tuple[int, ...]
Sums: TypeAlias = tuple[Any, ...]

# A state that starts as a copy of the parameter.
PARAMETER = "parameter"


class HyperparameterError(ValueError):
    """A hyperparameter outside its range; the message names it, the value and the range."""


@dataclass(frozen=True)
class Number:
    """A real hyperparameter, or with a tuple as default a vector of them (``betas``).

    The range is closed at a bound unless ``low_open`` or ``high_open`` says otherwise; infinities
    and NaN are outside unless ``infinite``. With ``optional`` it, or each entry, may also be None.
    """

    name: str
    default: float | tuple[float | None, ...] | None
    low: float = float("-inf")
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False
    optional: bool = False
    whole: bool = False
    infinite: bool = False
    meaning: str = ""

    @property
    def range(self) -> str:
        """The range as a person writes it: ``[0, 1)``."""
        opening = "(" if self.low_open or self.low == float("-inf") else "["
        closing = ")" if self.high_open or self.high == float("inf") else "]"
        limits = f"{opening}{self.low:g}, {self.high:g}{closing}"
        return limits + (" or None" if self.optional else "")

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
        if value is None and self.optional:
            return
        number = _as_float(value)
        what = "whole number" if self.whole else "number"
        if number is None or (self.whole and not number.is_integer()):
            raise HyperparameterError(
                f"{owner}: {name} must be a {what} in {self.range}, got {value!r}"
            )
        above = self.low < number if self.low_open else self.low <= number
        below = number < self.high if self.high_open else number <= self.high
        if not (above and below and (self.infinite or abs(number) != float("inf"))):
            raise HyperparameterError(f"{owner}: {name} must be in {self.range}, got {value!r}")


@dataclass(frozen=True)
class Flag:
    """A hyperparameter that is true or false."""

    name: str
    default: bool = False
    meaning: str = ""
    range: str = "True or False"

    def check(self, owner: str, value: Any) -> None:
        """Raise `HyperparameterError` unless the value is a bool."""
        if not isinstance(value, bool):
            raise HyperparameterError(f"{owner}: {self.name} must be {self.range}, got {value!r}")


@dataclass(frozen=True)
class Choice:
    """A hyperparameter that is one of a few words, None among them if it is the default."""

    name: str
    default: str | None
    options: tuple[str | None, ...]
    meaning: str = ""

    @property
    def range(self) -> str:
        """The options, listed."""
        return " or ".join(repr(option) for option in self.options)

    def check(self, owner: str, value: Any) -> None:
        """Raise `HyperparameterError` unless the value is one of the options."""
        if value not in self.options:
            raise HyperparameterError(f"{owner}: {self.name} must be {self.range}, got {value!r}")


Hyperparameter: TypeAlias = Number | Flag | Choice


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


# What every rule takes besides its own: the gradient's sign and size, and two ways of decaying
# weights. A rule that names one of them itself has another default.
_DECAY = (
    Number("weight_decay", 0.0, low=0.0, meaning="decay of the weights, L2 if coupled"),
    Flag(
        "decoupled_weight_decay",
        meaning="multiply x by 1 - lr weight_decay instead of adding weight_decay x to g",
    ),
)
_COMMON: tuple[Hyperparameter, ...] = (
    Flag("maximize", meaning="climb instead of descend"),
    Number(
        "clip_value",
        None,
        low=0.0,
        low_open=True,
        optional=True,
        meaning="bound on every entry of the gradient, as torch.nn.utils.clip_grad_value_ has it",
    ),
    Number(
        "clip_norm",
        None,
        low=0.0,
        low_open=True,
        optional=True,
        meaning="bound on the norm of the gradients of all parameters together, as "
        "torch.nn.utils.clip_grad_norm_ has it",
    ),
    Number(
        "ema_decay",
        None,
        low=0.0,
        high=1.0,
        high_open=True,
        optional=True,
        meaning="keep a moving average of the weights too, e <- d e + (1 - d) x, which "
        "`optimizer.eval()` puts in their place",
    ),
)

# A row of coefficients begins with these: sign of the gradient (times the factor that bounds its
# norm), bound of its entries, coupled decay, factor of decoupled decay.
HEAD = 4


def prepare(p: Any, g: Any, row: Sums) -> Any:
    """The gradient that a rule sees: its sign and size set, and coupled decay added.

    Coupled decay adds ``weight_decay * p``. The CPU kernel has the same in its loop.

    Args:
        p: parameter: an array, a tensor, or many that compute as one.
        g: gradient, the same.
        row: `Rule.row`; an entry may also be a tensor that broadcasts.
    """
    sign, bound, coupled = row[:3]
    if not _is(sign, 1.0):
        g = sign * g
    if not _is(bound, float("inf")):
        g = maximum(minimum(g, bound), -bound)
    if _is(coupled, 0.0):
        return g
    decayed = g + coupled * p
    # Zero times an infinite parameter would be NaN where torch.optim adds nothing.
    return decayed if isinstance(coupled, float) else where(coupled == 0.0, g, decayed)


def decay(p: Any, row: Sums) -> Any:
    """The parameter after decoupled decay, times ``1 - lr * weight_decay``; see `prepare`.

    Loshchilov and Hutter (2019), arXiv:1711.05101, line 12 of algorithm 2.
    """
    return p if _is(row[3], 1.0) else row[3] * p


def _is(coefficient: Any, value: float) -> bool:
    """Whether a coefficient, if it is one number for all, is this one."""
    return isinstance(coefficient, float) and coefficient == value


def _plain(x: Any) -> Any:
    """A NumPy scalar as a float, which does not make an array of a tensor it multiplies."""
    return float(x) if isinstance(x, np.ndarray | np.generic) and np.ndim(x) == 0 else x


def _in_floats(hyper: Hyper) -> Hyper:
    """The same with floats for tensors of one element, in whose dtype sums would go on."""
    betas = hyper.get("betas", ())
    if not isinstance(betas, tuple | list):
        betas = ()  # a number, of a rule of one's own
    if type(hyper["lr"]) in (float, int) and all(type(beta) in (float, int) for beta in betas):
        return hyper
    floats: dict[str, Any] = {"betas": tuple(map(float, betas))} if betas else {}
    return {**hyper, "lr": float(hyper["lr"]), **floats}


def _never(hyper: Hyper) -> float:
    return float("inf")


def _itself(hyper: Hyper) -> Hyper:
    return hyper


def _no_conflict(hyper: Hyper) -> str | None:
    return None


@dataclass(frozen=True)
class Rule:
    """An update rule, from which every executor is made.

    Attributes:
        name: as messages print it.
        hyper: the rule's own hyperparameters; `every_hyper` adds those that all rules have.
        state: names of the state kept per element, as ``state_dict`` has them.
        coefficients: ``(hyper, step, *scalars) -> tuple of floats``, everything that does not
            depend on the element; runs once a step on the host in float64, ``step`` counting
            from 1. In a CUDA graph step, scalars and rate are tensors: no ``if`` may ask for their
            value (`maths.where`), nor ``float``, ``min`` or ``max``.
        update: ``(p, g, *state, *coefficients, *extra) -> (p, *state)``, the elementwise maths,
            with ``+ - * / **``, the functions of `thalweg.rules.maths`, and others made of these.
        initial: ``hyper -> value`` for a state that does not start at zero, or `PARAMETER`.
        point: ``(p, *state, *coefficients) -> p``, where the gradient is taken if not at ``p``.
        answer: ``(p, *state, hyper) -> p``, the weights to evaluate and keep where they are not
            those that are trained.
        variant: ``hyper -> Rule`` when some hyperparameters change which state is kept.
        settles: ``hyper -> step`` from which the coefficients stay the same, infinity if they
            never do; so that a loop need not ask for them again.
        scalars: name and ``hyper -> start`` of numbers kept once per parameter tensor.
        terms: ``(p, g, *state, *coefficients) -> tuple``, elementwise, whose sums over a tensor
            the step needs first.
        joint: the sums go over all parameters of the optimizer instead.
        advance: ``(hyper, step, sums, scalars) -> (extra, scalars)``: further coefficients and the
            scalars to keep, from the sums and the scalars of the step before.
        own_decay: the rule has its own place for ``weight_decay``.
        moments: of the state, what may be kept in fewer bits, with whether it has a sign; None
            where eight bits are too few, and it is kept in bfloat16.
        whole: ``update`` takes whole tensors ``(count, *shape)`` by torch operations, ``count`` of
            them that do not know of each other, with coefficients that broadcast.
        exact: states kept in float32 where parameters have fewer bits.
        shapes: for states of ``whole`` rules that are not of the parameter's shape, what they are.
        part: ``(hyper, shape) -> Rule``, the one that parameters of a shape follow, where not all
            follow the same.
        reads: ``hyper -> hyper``, what a part sees in place of the group's hyperparameters.
        conflict: ``hyper -> sentence`` for values that exclude each other, or None.
        paper: where it comes from, with the equation or algorithm.
        formula: the update, as plain text.
        helps: where it helps.
        fails: where it fails.
        lr_range: the usual learning rates; a study's default is log-spaced over it.
    """

    name: str
    hyper: tuple[Hyperparameter, ...]
    state: tuple[str, ...]
    coefficients: Callable[..., Row]
    update: Callable[..., tuple[Any, ...]]
    initial: Mapping[str, Callable[[Hyper], float] | str] = field(default_factory=dict)
    point: Callable[..., Any] | None = None
    answer: Callable[..., Any] | None = None
    variant: Callable[[Hyper], "Rule"] | None = None
    settles: Callable[[Hyper], float] = _never
    scalars: Mapping[str, Callable[[Hyper], float]] = field(default_factory=dict)
    terms: Callable[..., tuple[Any, ...]] | None = None
    joint: bool = False
    advance: Callable[[Hyper, Any, Sums, Sums], tuple[Sums, Sums]] | None = None
    own_decay: bool = False
    moments: Mapping[str, bool | None] = field(default_factory=dict)
    whole: bool = False
    exact: tuple[str, ...] = ()
    shapes: Mapping[str, Callable[[Shape], Shape]] = field(default_factory=dict)
    part: Callable[[Hyper, Shape], "Rule"] | None = None
    reads: Callable[[Hyper], Hyper] = _itself
    conflict: Callable[[Hyper], str | None] = _no_conflict
    paper: str = ""
    formula: str = ""
    helps: str = ""
    fails: str = ""
    lr_range: tuple[float, float] = (1e-5, 1e-1)

    def __post_init__(self) -> None:
        """Raise `ValueError` for two states of one name."""
        twice = sorted({name for name in self.state if self.state.count(name) > 1})
        if twice:
            raise ValueError(f"{self.name}: there are two states {twice[0]!r}; rename one")

    def __hash__(self) -> int:
        """By identity of the maths, so that rules can key caches."""
        return hash((self.name, self.state, self.update))

    @property
    def every_hyper(self) -> dict[str, Hyperparameter]:
        """All hyperparameters by name, those that every rule has included."""
        own = {h.name: h for h in self.hyper}
        decay = _DECAY[:1] if self.own_decay else _DECAY
        return own | {h.name: h for h in (*decay, *_COMMON) if h.name not in own}

    @property
    def defaults(self) -> dict[str, Any]:
        """Default of every hyperparameter."""
        return {name: h.default for name, h in self.every_hyper.items()}

    def check(self, hyper: Hyper, owner: str | None = None) -> None:
        """Raise `HyperparameterError` for an unknown name or a value outside its range."""
        known = self.every_hyper
        for name, value in hyper.items():
            if name not in known:
                raise HyperparameterError(
                    f"{owner or self.name}: there is no hyperparameter {name!r}; "
                    f"it has {', '.join(known)}"
                )
            known[name].check(owner or self.name, value)
        problem = self.conflict({**self.defaults, **hyper})
        if problem:
            raise HyperparameterError(f"{owner or self.name}: {problem}")

    @property
    def usual_lr(self) -> float:
        """The middle of the usual learning rates, by their logarithm."""
        low, high = self.lr_range
        return math.sqrt(low * high)

    def complete(self, hyper: Hyper) -> dict[str, Any]:
        """The given hyperparameters, checked, with defaults for the rest."""
        self.check(hyper)
        return {**self.defaults, **hyper}

    def resolve(self, hyper: Hyper, shape: Shape | None = None) -> "Rule":
        """The rule whose state and maths these (complete) hyperparameters ask for.

        Args:
            hyper: complete hyperparameters.
            shape: of a parameter, for the part that it follows.
        """
        rule = self.variant(hyper) if self.variant else self
        if rule.part and shape is not None:
            rule = rule.part(hyper, shape)
        return rule if hyper.get("ema_decay") is None else averaged(rule)

    def row(self, hyper: Hyper, step: int, scalars: Sums = ()) -> Row:
        """``(sign, bound, coupled, shrink, *coefficients)`` for one step, float64.

        Args:
            hyper: complete hyperparameters.
            step: counting from 1.
            scalars: as the step before left them.
        """
        hyper = _in_floats(self.reads(hyper))
        return tuple(float(c) for c in self._row(hyper, step, scalars))

    def raw_row(self, hyper: Hyper, step: Any, scalars: Sums = ()) -> Sums:
        """The same as it comes: where rate, step or a scalar is a tensor, so is what it makes.

        Nothing looks into a tensor, so that a device need not be waited for.

        Args:
            hyper: complete hyperparameters; numbers may be float64 tensors without dimensions.
            step: counting from 1, or such a tensor.
            scalars: as the step before left them, numbers or such tensors.
        """
        return self._row(self.reads(hyper), step, scalars)

    def _row(self, hyper: Hyper, step: Any, scalars: Sums) -> Sums:
        bound = hyper["clip_value"]
        decay = hyper["weight_decay"]
        decoupled = not self.own_decay and hyper["decoupled_weight_decay"]
        rate = hyper["lr"] if hyper.get("decay_by_lr", True) else 1.0
        return (
            -1.0 if hyper["maximize"] else 1.0,
            float("inf") if bound is None else float(bound),
            0.0 if decoupled or self.own_decay else float(decay),
            1.0 - rate * float(decay) if decoupled else 1.0,
            *self.coefficients(hyper, step, *scalars),
        )

    def start(self, hyper: Hyper) -> tuple[float | None, ...]:
        """Initial value of each state, None for one that starts as a copy of the parameter."""
        hyper = self.reads(hyper)
        found: list[float | None] = []
        for name in self.state:
            initial = self.initial.get(name)
            if initial is None:
                found.append(0.0)
            else:
                found.append(None if isinstance(initial, str) else float(initial(hyper)))
        return tuple(found)

    def start_scalars(self, hyper: Hyper) -> tuple[float, ...]:
        """Initial value of each scalar."""
        hyper = self.reads(hyper)
        return tuple(float(initial(hyper)) for initial in self.scalars.values())

    def go_on(self, hyper: Hyper, step: Any, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
        """Further coefficients of this step, and the scalars to keep (`advance`)."""
        if self.advance is None:
            return (), scalars
        return self._go_on(_in_floats(self.reads(hyper)), step, sums, scalars)

    def raw_go_on(self, hyper: Hyper, step: Any, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
        """The same without a look into a tensor (`raw_row`)."""
        return self._go_on(self.reads(hyper), step, sums, scalars)

    def _go_on(self, hyper: Hyper, step: Any, sums: Sums, scalars: Sums) -> tuple[Sums, Sums]:
        if self.advance is None:
            return (), scalars
        extra, after = self.advance(hyper, step, sums, scalars)
        return tuple(map(_plain, extra)), tuple(map(_plain, after))


@cache
def averaged(rule: Rule) -> Rule:
    """The same rule, which keeps a moving average of the weights besides and answers with it."""
    update, place, first = rule.update, len(rule.state), 0
    # Numba wants to see that the places in a tuple are constants, and takes bare ones for numbers.
    keep, gain, after = place + 1, place + 2, place + 3

    def and_average(p: Any, g: Any, *rest: Any) -> tuple[Any, ...]:
        new = update(p, g, *rest[:place], *rest[after:])
        return *new, rest[keep] * rest[place] + rest[gain] * new[first]

    def coefficients(hyper: Hyper, step: int, *scalars: Any) -> Row:
        decay = hyper["ema_decay"]
        return decay, 1.0 - decay, *rule.coefficients(hyper, step, *scalars)

    return replace(
        rule,
        state=(*rule.state, "ema"),
        update=and_average,
        coefficients=coefficients,
        initial={**rule.initial, "ema": PARAMETER},
        terms=_without(rule.terms, 2 + place),
        point=_without(rule.point, 1 + place),
        answer=lambda p, *rest: rest[place],
    )


def _without(function: Callable[..., Any] | None, place: int) -> Callable[..., Any] | None:
    """A rule's function that is not to see the average, which is at this place."""
    if function is None:
        return None
    inner, after = function, place + 3

    def outer(*arguments: Any) -> Any:
        return inner(*arguments[:place], *arguments[after:])

    return outer
