"""The schedules by their usual names; ``t`` counts the steps done, from 0.

Those of Caffe are in its SolverParameter's ``lr_policy``,
https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto.
"""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any, Literal

import numpy as np

from thalweg.rules.rule import Choice, Flag, HyperparameterError, Number
from thalweg.schedules.schedule import Floats, Schedule, ScheduleError, typed

__all__ = [
    "COUNTS",
    "PARAMETERS",
    "constant_with_warmup",
    "cosine",
    "exp",
    "exp_range",
    "fixed",
    "inv",
    "inverse_sqrt",
    "linear",
    "multistep",
    "noam",
    "one_cycle",
    "poly",
    "sgdr",
    "sigmoid",
    "step",
    "triangular",
    "triangular2",
    "warmup",
    "wsd",
]

# Parameters, in whichever schedule; None besides where it is the default.
PARAMETERS: dict[str, Number | Flag | Choice] = {
    p.name: p
    for p in (
        Number("steps", None, low=1, whole=True, meaning="how long it lasts"),
        Number("size", None, low=1, whole=True, meaning="steps between drops, or to the half"),
        Number("milestones", None, low=1, whole=True, meaning="steps of the drops"),
        Number("gamma", None, low=0, low_open=True, meaning="how much it falls"),
        Number("power", None, low=0, low_open=True, meaning="exponent"),
        Number("start", None, low=0, meaning="factor at the start"),
        Number("end", None, low=0, meaning="factor at the end"),
        Number("warmup", None, low=0, whole=True, meaning="steps to the full rate"),
        Number("decay", None, low=0, whole=True, meaning="steps of the fall at the end"),
        Number("pct_start", None, low=0, high=1, meaning="fraction of the steps that rise"),
        Number("div_factor", None, low=0, low_open=True, meaning="peak over start"),
        Number("final_div_factor", None, low=0, low_open=True, meaning="start over end"),
        Choice("anneal", "cos", ("cos", "linear"), meaning="the shape"),
        Flag("three_phase", meaning="fall as fast as it rose, then to the end"),
        Number("d_model", None, low=1, whole=True, meaning="width of the transformer"),
        Number("half", None, low=1, whole=True, meaning="steps up"),
        Number("down", None, low=1, whole=True, meaning="steps down; as many as up by default"),
        Number("low", None, low=0, high=1, meaning="factor at the bottom"),
        Number("period", None, low=1, whole=True, meaning="steps to the first restart"),
        Number("multiplier", None, low=1, whole=True, meaning="of the period, at each restart"),
    )
}
# Of these, the ones that count steps.
COUNTS = frozenset(
    ("steps", "size", "milestones", "warmup", "decay", "half", "down", "period")
)  # fmt: skip


def fixed(steps: int | None = None) -> Schedule:
    """1, for so many steps or for ever. Caffe's fixed."""
    return _made(fixed, _fixed, steps=steps)


def step(size: int, gamma: float = 0.1) -> Schedule:
    """``gamma ** floor(t / size)``: multiplied by ``gamma`` every ``size`` steps.

    Caffe's step, torch's StepLR.
    """
    return _made(step, _step, size=size, gamma=gamma)


def multistep(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Multiplied by ``gamma`` from each of the milestones on, which increase.

    Caffe's multistep, torch's MultiStepLR.
    """
    return _made(multistep, _multistep, milestones=milestones, gamma=gamma)


def exp(gamma: float) -> Schedule:
    """``gamma ** t``. Caffe's exp, torch's ExponentialLR."""
    return _made(exp, _exp, gamma=gamma)


def inv(gamma: float, power: float) -> Schedule:
    """``(1 + gamma t) ** -power``. Caffe's inv."""
    return _made(inv, _inv, gamma=gamma, power=power)


def poly(steps: int, power: float, end: float = 0.0) -> Schedule:
    """``end + (1 - end) (1 - t / steps) ** power``.

    Caffe's poly and torch's PolynomialLR, where ``end`` is 0.
    """
    return _made(poly, _poly, steps=steps, power=power, end=end)


def sigmoid(size: int, gamma: float) -> Schedule:
    """``1 / (1 + exp(gamma (t - size)))``: falls from 1 to 0, and is a half at ``size``.

    Caffe's sigmoid with the other sign: it has ``exp(-gamma (t - stepsize))`` with ``gamma >= 0``,
    which rises, though it is called a decay there.
    """
    return _made(sigmoid, _sigmoid, size=size, gamma=gamma)


def cosine(steps: int, end: float = 0.0) -> Schedule:
    """Half a period of a cosine from 1 to ``end``.

    ``end + (1 - end) (1 + cos(pi t / steps)) / 2`` (Loshchilov and Hutter 2017, equation 5,
    https://arxiv.org/abs/1608.03983, without restarts); torch's CosineAnnealingLR up to T_max.
    """
    return _made(cosine, _cosine, steps=steps, end=end)


def linear(steps: int, start: float = 1.0, end: float = 0.0) -> Schedule:
    """On a line from ``start`` to ``end``. torch's LinearLR."""
    return _made(linear, _linear, steps=steps, start=start, end=end)


def warmup(steps: int, start: float | None = None) -> Schedule:
    """On a line up to 1, which comes after ``steps`` steps.

    By default it is ``(t + 1) / (steps + 1)``, so that the first step is none of size 0; otherwise
    it begins at ``start``, as torch's LinearLR does.
    """
    return _made(warmup, _warmup, steps=steps, start=start)


def constant_with_warmup(warmup: int) -> Schedule:
    """``warmup(warmup)``, then 1 for ever."""
    return _made(constant_with_warmup, _constant_with_warmup, warmup=warmup)


def wsd(steps: int, warmup: int, decay: int, end: float = 0.0) -> Schedule:
    """Warm-up, stable, decay: ``warmup(warmup)``, then 1, and a line to ``end`` at the end.

    Hu et al. 2024, section 4.2, https://arxiv.org/abs/2404.06395; the line as in Hägele et al.
    2024, https://arxiv.org/abs/2405.18392.

    Raises:
        ScheduleError: if warm-up and decay are longer than the whole.
    """
    made = _made(wsd, _wsd, steps=steps, warmup=warmup, decay=decay, end=end)
    if warmup + decay > steps:
        raise ScheduleError(
            "steps",
            f"wsd has {warmup} steps of warmup and {decay} of decay, more than its {steps} steps; "
            "make one of them shorter",
        )
    return made


def one_cycle(
    steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: Literal["cos", "linear"] = "cos",
    three_phase: bool = False,
) -> Schedule:
    """Up from ``1 / div_factor`` to 1, and down to ``1 / div_factor / final_div_factor``.

    Smith and Topin 2018, https://arxiv.org/abs/1708.07120. torch's OneCycleLR with
    ``total_steps=steps``, its rates divided by ``max_lr``: the end is that of the last step,
    ``t = steps - 1``, and stays. The base rate is what is ``max_lr`` there.

    Args:
        steps: how long it lasts.
        pct_start: fraction of the steps that rise, 0 to 1; with three phases to 0.5.
        div_factor: peak over start, above 0.
        final_div_factor: start over end, above 0.
        anneal: "cos" or "linear".
        three_phase: whether it falls to where it started as fast as it rose, and from there on to
            the end, as in the paper.

    Raises:
        ScheduleError: for a parameter out of its range.
    """
    made = _made(
        one_cycle, _one_cycle, steps=steps, pct_start=pct_start, div_factor=div_factor,
        final_div_factor=final_div_factor, anneal=anneal, three_phase=three_phase,
    )  # fmt: skip
    if three_phase and pct_start > 0.5:
        raise ScheduleError(
            "pct_start",
            f"one_cycle with three_phase takes pct_start in [0, 0.5], as it falls as long as it "
            f"rises, got {pct_start!r}",
        )
    return made


def noam(warmup: int, d_model: int | None = None) -> Schedule:
    """A line up over ``warmup`` steps, then the inverse square root of the step.

    With ``d_model`` it is the rate of Vaswani et al. 2017, equation 3,
    https://arxiv.org/abs/1706.03762, for a base rate of 1: ``d_model ** -0.5 min(s ** -0.5, s
    warmup ** -1.5)``, where ``s = t + 1``; without, the same scaled to a peak of 1.
    """
    _check_warmup("noam", warmup)
    return _made(noam, _noam, warmup=warmup, d_model=d_model)


def inverse_sqrt(warmup: int) -> Schedule:
    """``warmup(warmup)``, then ``sqrt(warmup / t)``.

    fairseq's inverse_sqrt
    (https://github.com/facebookresearch/fairseq/blob/main/fairseq/optim/lr_scheduler/inverse_square_root_schedule.py),
    but for the first step's rate, which is not 0.
    """
    _check_warmup("inverse_sqrt", warmup)
    return _made(inverse_sqrt, _inverse_sqrt, warmup=warmup)


def triangular(half: int, low: float = 0.1, down: int | None = None) -> Schedule:
    """On lines from ``low`` up to 1 in ``half`` steps and back in ``down``, again and again.

    Smith 2017, section 3.1, https://arxiv.org/abs/1506.01186. torch's CyclicLR, its rates divided
    by ``max_lr``; ``low`` is ``base_lr / max_lr``. The base rate is what is ``max_lr`` there.
    """
    return _made(triangular, _triangular, half=half, low=low, down=down)


def triangular2(half: int, low: float = 0.1, down: int | None = None) -> Schedule:
    """`triangular`, with half the height above ``low`` in each cycle of that before."""
    return _made(triangular2, _triangular2, half=half, low=low, down=down)


def exp_range(half: int, gamma: float, low: float = 0.1, down: int | None = None) -> Schedule:
    """`triangular`, with ``gamma ** t`` of the height above ``low``."""
    return _made(exp_range, _exp_range, half=half, gamma=gamma, low=low, down=down)


def sgdr(period: int, multiplier: int = 1, end: float = 0.0) -> Schedule:
    """`cosine` that restarts at 1 after ``period`` steps, then ``multiplier`` times as many, ….

    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983; torch's
    CosineAnnealingWarmRestarts.
    """
    return _made(sgdr, _sgdr, period=period, multiplier=multiplier, end=end)


def _fixed(t: Floats, steps: int | None) -> Floats:
    return np.ones_like(t)


def _step(t: Floats, size: int, gamma: float) -> Floats:
    return np.asarray(gamma ** (t // size))


def _multistep(t: Floats, milestones: list[int], gamma: float) -> Floats:
    return np.asarray(gamma ** np.searchsorted(milestones, t, side="right").astype(t.dtype))


def _exp(t: Floats, gamma: float) -> Floats:
    return np.asarray(gamma**t)


def _inv(t: Floats, gamma: float, power: float) -> Floats:
    return np.asarray((1 + gamma * t) ** -power)


def _poly(t: Floats, steps: int, power: float, end: float) -> Floats:
    return _between(end, 1.0, (1 - t / steps) ** power)


def _sigmoid(t: Floats, size: int, gamma: float) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, gamma * (t - size))))


def _cosine(t: Floats, steps: int, end: float) -> Floats:
    return _between(end, 1.0, _half_cosine(t / steps))


def _linear(t: Floats, steps: int, start: float, end: float) -> Floats:
    return _between(start, end, t / steps)


def _warmup(t: Floats, steps: int, start: float | None) -> Floats:
    return (t + 1) / (steps + 1) if start is None else _between(start, 1.0, t / steps)


def _constant_with_warmup(t: Floats, warmup: int) -> Floats:
    return _warmup(np.minimum(t, warmup), warmup, None)


def _wsd(t: Floats, steps: int, warmup: int, decay: int, end: float) -> Floats:
    left = np.minimum((steps - t) / decay, 1.0) if decay else np.ones_like(t)
    return _constant_with_warmup(t, warmup) * _between(end, 1.0, left)


def _one_cycle(
    t: Floats,
    steps: int,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
    anneal: str,
    three_phase: bool,
) -> Floats:
    start = 1 / div_factor
    last = start / final_div_factor
    rise = pct_start * steps
    # The step at which a phase ends, and the factors at its two ends; fractions as torch has them.
    phases = [(rise - 1, start, 1.0), (steps - 1.0, 1.0, last)]
    if three_phase:
        phases[1:] = [(2 * rise - 2, 1.0, start), (steps - 1.0, start, last)]
    factor = np.full_like(t, last)
    begin, todo = 0.0, t < steps
    for end, a, b in phases:
        mine = todo & (t <= end)
        done = (t[mine] - begin) / (end - begin) if end > begin else np.ones_like(t[mine])
        if anneal == "cos":
            done = 1 - _half_cosine(done)
        factor[mine] = _between(a, b, done)
        begin, todo = end, todo & ~mine
    return factor


def _noam(t: Floats, warmup: int, d_model: int | None) -> Floats:
    s = t + 1
    if d_model is None:
        return np.minimum(np.sqrt(warmup / s), s / warmup)
    return np.asarray(d_model**-0.5 * np.minimum(s**-0.5, s * warmup**-1.5))


def _inverse_sqrt(t: Floats, warmup: int) -> Floats:
    return _constant_with_warmup(t, warmup) * np.sqrt(warmup / np.maximum(t, warmup))


def _triangular(t: Floats, half: int, low: float, down: int | None) -> Floats:
    return _between(low, 1.0, _height(t, half, down))


def _triangular2(t: Floats, half: int, low: float, down: int | None) -> Floats:
    cycle = t // (half + (down or half))
    return _between(low, 1.0, _height(t, half, down) * 0.5**cycle)


def _exp_range(t: Floats, half: int, gamma: float, low: float, down: int | None) -> Floats:
    return _between(low, 1.0, _height(t, half, down) * gamma**t)


def _height(t: Floats, half: int, down: int | None) -> Floats:
    """0 to 1 and back."""
    down = down or half
    at = t % (half + down)
    return np.where(at <= half, at / half, (half + down - at) / down)


def _sgdr(t: Floats, period: int, multiplier: int, end: float) -> Floats:
    if multiplier == 1:
        return _cosine(t % period, period, end)
    # In whole numbers: a logarithm puts a step at a restart on its wrong side.
    begins, lengths = [0], [period]
    top = t.max(initial=0.0)
    while begins[-1] + lengths[-1] <= top:
        begins.append(begins[-1] + lengths[-1])
        lengths.append(lengths[-1] * multiplier)
    cycle = np.searchsorted(begins, t, side="right") - 1
    done = (t - np.take(begins, cycle)) / np.take(lengths, cycle)
    return _between(end, 1.0, _half_cosine(done))


def _between(a: float, b: float, share: Floats) -> Floats:
    """From a to b, both exact."""
    return np.asarray(a * (1 - share) + b * share)


def _half_cosine(done: Floats) -> Floats:
    """``(1 + cos(pi done)) / 2``, of which the sum keeps nothing near the end."""
    return np.asarray(np.sin(np.pi / 2 * (1 - done)) ** 2)


def _made(factory: Callable[..., Schedule], of: Callable[..., Floats], **given: Any) -> Schedule:
    """A schedule by its name, with its parameters checked."""
    name = factory.__name__
    defaults = {p.name: p.default for p in signature(factory).parameters.values()}
    values = {
        key: None if value is None is defaults[key] else _checked(name, key, value)
        for key, value in given.items()
    }
    shown = [
        typed(value) if defaults[key] is Parameter.empty else f"{key}={typed(value)}"
        for key, value in values.items()
        if value != defaults[key]
    ]
    return Schedule(f"{name}({', '.join(shown)})", values.get("steps"), partial(of, **values))


def _checked(owner: str, name: str, value: Any) -> Any:
    if name == "milestones":
        return _milestones(owner, value)
    parameter = PARAMETERS[name]
    try:
        parameter.check(owner, value)
    except HyperparameterError:
        kind = ""
        if isinstance(parameter, Number):
            kind = f"{'a whole number' if parameter.whole else 'a number'} in "
        raise ScheduleError(
            name, f"{owner} takes as {name} {kind}{parameter.range}, got {value!r}"
        ) from None
    if isinstance(parameter, Number):
        return int(value) if parameter.whole else float(value)
    return value


def _milestones(owner: str, value: Any) -> list[int]:
    try:
        found = [int(one) for one in value]
        right = found == list(value)
    except (TypeError, ValueError):
        found, right = [], False
    if not (right and found and found[0] >= 1 and found == sorted(set(found))):
        raise ScheduleError(
            "milestones",
            f"{owner} takes as milestones whole numbers of at least 1 that increase, got {value!r}",
        )
    return found


def _check_warmup(owner: str, value: Any) -> None:
    if value == 0:
        raise ScheduleError(
            "warmup", f"{owner} takes as warmup a whole number in [1, inf), got {value!r}"
        )
