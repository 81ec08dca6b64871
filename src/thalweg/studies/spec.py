"""What is to be run: a frozen specification, checked where it comes in, with a content hash."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import sha256
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from thalweg.optim.base import RuleOptimizer
from thalweg.optim.registry import BUILT_IN, MAIN, OPTIMIZERS, entry_of, key
from thalweg.replicas import Budget, Factors
from thalweg.rules import Rule
from thalweg.rules.code import digest
from thalweg.schedules import Schedule, ScheduleError, parse
from thalweg.studies.factors import (
    FACTORS,
    BatchSizes,
    Crossed,
    Factor,
    Level,
    Levels,
    StudyError,
    Variant,
    cross,
    whole,
)
from thalweg.tasks import Task

__all__ = [
    "LearningRates",
    "Run",
    "StudyError",
    "StudySpec",
    "factors_of",
    "fingerprint",
    "plan",
    "specify",
]

Optimizer: TypeAlias = str | Rule | type[RuleOptimizer]
LearningRates: TypeAlias = str | float | Sequence[float] | Mapping[str, Sequence[float]]

# Raised whenever the same specification would give other numbers than before.
METHOD = 1

DEFAULT_RATES = 9


@dataclass(frozen=True)
class Run:
    """One training with one setting and seed.

    Attributes:
        id: 12 hexadecimal digits, the hash of everything that its numbers depend on.
        optimizer: name in the registry.
        lr: learning rate.
        seed: of initial weights and order of batches.
        levels: of each factor, in the order of `thalweg.studies.factors.FACTORS`.
    """

    id: str
    optimizer: str
    lr: float
    seed: int
    levels: Levels


@dataclass(frozen=True)
class StudySpec:
    """Everything that the numbers of a study depend on, and its name.

    Attributes:
        name: a person's name for it; not part of the hash.
        task: name of the task.
        fingerprint: of the task's data and model (`Task.fingerprint`).
        lrs: for each optimizer the learning rates it is tried at, ascending.
        seeds: every setting is trained once from each.
        batch_size: samples a step; where it is varied, those of the first level, as are the next.
        steps: optimizer steps of each run.
        steps_per_epoch: steps between validations.
        target: validation metric that counts as trained, or None.
        patience: epochs without a better validation loss after which a run is stopped, or None.
        method: version of how runs are trained.
        own: for each optimizer of one's own a hash of its rule's code.
        factors: for each further factor its levels; of one level where it is not varied.
        variants: for each combination of these levels the `Task.fingerprint` of the task with it.
        budgets: where the batch size is varied, of each of its levels ``(steps, batch_size,
            steps_per_epoch)``.
    """

    name: str
    task: str
    fingerprint: str
    lrs: tuple[tuple[str, tuple[float, ...]], ...]
    seeds: tuple[int, ...]
    batch_size: int
    steps: int
    steps_per_epoch: int
    target: float | None
    patience: int | None
    method: int = METHOD
    own: tuple[tuple[str, str], ...] = ()
    factors: tuple[tuple[str, Levels], ...] = ()
    variants: tuple[tuple[Levels, str], ...] = ()
    budgets: tuple[tuple[int, int, int], ...] = ()

    @property
    def varied(self) -> tuple[Factor, ...]:
        """Factors of more than one level."""
        return tuple(f for f in FACTORS if len(self.levels(f)) > 1)

    def levels(self, factor: Factor) -> Levels:
        """Of a factor; one where it is not varied."""
        return dict(self.factors).get(factor.name) or (_unheard_of(factor, self.batch_size),)

    @property
    def telling(self) -> tuple[Factor, ...]:
        """Factors whose levels have to be known to know a run."""
        return tuple(
            f
            for f in FACTORS
            if f in self.varied or (f.plain is not None and self.levels(f) != (f.plain,))
        )

    @property
    def combinations(self) -> tuple[Levels, ...]:
        """Of the levels of all factors, one of each."""
        return tuple(product(*map(self.levels, FACTORS)))

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the optimizers compared."""
        return tuple(name for name, _ in self.lrs)

    @property
    def epochs(self) -> int:
        """Epochs of each run, the last one maybe cut short."""
        return -(-self.steps // self.steps_per_epoch)

    def budget(self, levels: Levels) -> Budget:
        """What each run with these levels of all factors may spend."""
        if not self.budgets:
            return Budget(self.steps, self.batch_size, self.steps_per_epoch)
        place = [f.name for f in FACTORS].index("batch_size")
        return next(
            b for b in (Budget(*given) for given in self.budgets) if b.batch_size == levels[place]
        )

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that change with anything the numbers depend on."""
        content = {k: v for k, v in asdict(self).items() if k != "name"}
        if not self.own:  # as it was before there were any
            del content["own"]
        if not self.telling:  # likewise; the fingerprint says it all
            del content["factors"], content["variants"]
        if not self.budgets:
            del content["budgets"]
        return _digest(content, 16)

    @property
    def json(self) -> str:
        """The specification as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "StudySpec":
        """The inverse of `json`."""
        content = json.loads(text)
        content["lrs"] = tuple((name, tuple(rates)) for name, rates in content["lrs"])
        content["seeds"] = tuple(content["seeds"])
        content["own"] = tuple((name, code) for name, code in content.get("own", ()))
        content["budgets"] = tuple(map(tuple, content.get("budgets", ())))
        # A study from before there was a factor has no level of it.
        known = {name: tuple(levels) for name, levels in content.get("factors", ())}
        absent = {f.name: _unheard_of(f, content["batch_size"]) for f in FACTORS}
        content["factors"] = tuple(
            (name, known.get(name, (level,))) for name, level in absent.items()
        )
        content["variants"] = tuple(
            (tuple({**absent, **dict(zip(known, levels, strict=True))}.values()), found)
            for levels, found in content.get("variants", ())
        )
        return cls(**content)


def _unheard_of(factor: Factor, batch_size: int) -> Level:
    """The level that a study from before there was a factor has of it."""
    return batch_size if factor.name == "batch_size" else factor.plain or ""


def _digest(content: Any, length: int) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def plan(spec: StudySpec) -> list[Run]:
    """All runs of a study, seed by seed, so that neighbours see the same batches."""
    telling = spec.telling
    fingerprints = dict(spec.variants)
    own = {name: (code,) for name, code in spec.own}
    return [
        Run(
            _digest(
                [
                    fingerprints.get(levels, spec.fingerprint),
                    budget.batch_size,
                    budget.steps,
                    spec.patience,
                    spec.method,
                    optimizer,
                    *own.get(optimizer, ()),
                    lr,
                    seed,
                    *(level for f, level in zip(FACTORS, levels, strict=True) if f in telling),
                ],
                12,
            ),
            optimizer,
            lr,
            seed,
            levels,
        )
        for seed in spec.seeds
        for levels in spec.combinations
        for budget in (spec.budget(levels),)
        for optimizer, rates in spec.lrs
        for lr in rates
    ]


def specify(
    task: Task | Crossed,
    *,
    optimizers: Iterable[Optimizer] | None = None,
    lr: LearningRates | None = None,
    seeds: int | Sequence[int] = 5,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: BatchSizes | None = None,
    target: float | None = None,
    patience: int | None = None,
    name: str | None = None,
) -> StudySpec:
    """Check what a person asks for and make a specification of it.

    The arguments are those of `thalweg.study`; a task may come crossed with further factors.

    Raises:
        StudyError: naming the argument, its value and what it may be.
    """
    crossed = cross(task, batch_size=batch_size) if isinstance(task, Task) else task
    first = next(iter(crossed.variants.values()))
    task = first.task
    sizes = list(dict.fromkeys(v.batch_size for v in crossed.variants.values()))
    if epochs is not None and steps is not None:
        raise StudyError("steps", f"give either epochs ({epochs}) or steps ({steps}), not both")
    if steps is not None:
        steps = whole("steps", steps)
    epochs = whole("epochs", 30 if epochs is None else epochs)
    budgets = {
        size: Budget(steps or epochs * (len(task.train) // size), size, len(task.train) // size)
        for size in sizes
    }
    for variant in crossed.variants.values():
        _try_factors(variant, budgets[variant.batch_size])
    names = _optimizers(optimizers)
    if target is not None:
        target = _number("target", target)
        if task.metric.percent and not 0 < target <= 1:
            raise StudyError(
                "target",
                f"{target:g} is no {task.metric.name}; give a fraction in (0, 1], 0.95 say",
            )
    return StudySpec(
        name=crossed.task.name if name is None else _name(name),
        task=crossed.task.name,
        fingerprint=task.fingerprint,
        lrs=tuple((n, _rates(n, lr)) for n in names),
        seeds=_seeds(seeds),
        batch_size=first.batch_size,
        steps=budgets[first.batch_size].steps,
        steps_per_epoch=budgets[first.batch_size].steps_per_epoch,
        target=task.target if target is None else target,
        patience=None if patience is None else whole("patience", patience),
        own=tuple((n, digest(OPTIMIZERS[n].rule)) for n in names if n not in BUILT_IN),
        factors=crossed.factors,
        variants=tuple((levels, fingerprint(v)) for levels, v in crossed.variants.items()),
        budgets=tuple(astuple(b) for b in budgets.values()) if len(budgets) > 1 else (),
    )


def _name(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or any(c in name for c in "/\\\0\n"):
        raise StudyError("name", f"{name!r} cannot name a study; give letters, digits, spaces")
    return name


def factors_of(variant: Variant, budget: Budget) -> Factors | None:
    """What multiplies the learning rate at each step of a run; None for a rate that stays.

    Raises:
        StudyError: for a schedule that there is not, or that ends before the run does.
    """
    given = variant.schedule
    if given is None:
        return None
    try:
        if isinstance(given, str):
            return parse(given, budget.steps, budget.steps_per_epoch).hold()
    except ScheduleError as error:
        raise StudyError("schedules", error.problem) from None
    if given.steps is not None and given.steps < budget.steps:
        raise StudyError(
            "schedules",
            f"{given.text} lasts {given.steps} steps, and runs take {budget.steps}; make it "
            f"longer, or add .hold()",
        )
    return given.hold()


def _try_factors(variant: Variant, budget: Budget) -> None:
    """Ask a schedule for all its factors, before anything is trained by them."""
    factors = factors_of(variant, budget)
    try:
        found = None if factors is None else factors(np.arange(budget.steps))
    except ScheduleError as error:
        raise StudyError("schedules", error.problem) from None
    if found is not None and (found < 0).any():
        raise StudyError(
            "schedules",
            f"{variant.schedule} has a factor of {found.min():g} at step {int(found.argmin())}; "
            f"a learning rate cannot be below 0",
        )


def fingerprint(variant: Variant) -> str:
    """Of its task and, where it was made in Python, its schedule."""
    found = variant.task.fingerprint
    if isinstance(variant.schedule, Schedule):  # of whose function its text may say nothing
        return _digest([found, digest(variant.schedule.of)], 16)
    return found


def _number(argument: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise StudyError(argument, f"must be a finite number, got {value!r}")
    return number


def _optimizers(asked: Iterable[Optimizer] | None) -> tuple[str, ...]:
    if isinstance(asked, str):
        asked = [part.strip() for part in asked.split(",")]
    known = ", ".join(OPTIMIZERS)
    if asked is not None and not isinstance(asked, Iterable):
        raise StudyError("optimizers", f"must be names, got {asked!r}; choose from {known}")
    if asked is None:
        return MAIN
    chosen = dict.fromkeys(entry_of(one, "optimizers", StudyError).name for one in asked)
    if not chosen:
        raise StudyError("optimizers", f"none given; choose from {known}")
    return tuple(chosen)


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int | np.integer):
        return tuple(range(whole("seeds", seeds)))
    if not isinstance(seeds, Iterable):
        raise StudyError("seeds", f"must be a whole number or a list of them, got {seeds!r}")
    chosen = tuple(dict.fromkeys(seeds))
    if not chosen:
        raise StudyError("seeds", "none given; give how many, or a list of whole numbers")
    for seed in chosen:
        number = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not number or not 0 <= seed < 2**63:
            raise StudyError("seeds", f"must be whole numbers from 0, got {seed!r}")
    return tuple(int(seed) for seed in chosen)


def _rates(optimizer: str, lr: LearningRates | None) -> tuple[float, ...]:
    if isinstance(lr, Mapping):
        unknown = {name for name in lr if key(name) not in OPTIMIZERS}
        if unknown:
            raise StudyError("lr", f"there is no optimizer {min(unknown)!r}")
        lr = {key(name): rates for name, rates in lr.items()}.get(optimizer)
    if lr is None:
        return _spaced(*OPTIMIZERS[optimizer].lr_range, DEFAULT_RATES)
    if isinstance(lr, str):
        return _parsed(lr)
    return _checked(lr if isinstance(lr, Iterable) else [lr])


def _parsed(text: str) -> tuple[float, ...]:
    parts = text.split(":")
    if len(parts) == 1:
        return _checked(text.split(","))
    if len(parts) != 3 or not parts[2].strip().isdigit() or int(parts[2]) < 2:
        raise StudyError(
            "lr",
            f"{text!r} is no range; write low:high:count, 1e-4:1:13 say, with a count of at "
            f"least 2, or a list, 0.001,0.01",
        )
    low, high = _checked(parts[:2], keep_order=True)
    if low >= high:
        raise StudyError("lr", f"{text!r}: the low end must be below the high end")
    return _spaced(low, high, int(parts[2]))


def _spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    # Four digits are enough for a learning rate, and are what tables and hashes then agree on.
    return tuple(float(f"{rate:.4g}") for rate in np.geomspace(low, high, count))


def _checked(values: Iterable[Any], keep_order: bool = False) -> tuple[float, ...]:
    rates = []
    for value in values:
        rate = _number("lr", value)
        if rate <= 0:
            raise StudyError("lr", f"must be above 0, got {value!r}")
        rates.append(rate)
    if not rates:
        raise StudyError("lr", "none given; write low:high:count or a list")
    return tuple(rates) if keep_order else tuple(sorted(set(rates)))
