"""A schedule applied to an optimizer."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import ref

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thalweg.schedules.schedule import Schedule, ScheduleError

__all__ = ["Scheduler"]

_AHEAD = 256  # steps whose factors are computed at once, as one takes as long as all of them


class Scheduler(LRScheduler):
    """Sets the learning rates of an optimizer to base rate times schedule, after every `step`.

    The rate is a function of the number of steps alone, so that a resumed training has the same
    rates. Call `step` after ``optimizer.step()``: after each, or after an epoch's for a schedule
    that counts epochs.

    A group's base rate is its ``initial_lr``, which torch's schedulers read and write too, or its
    ``lr`` if it has none yet. A group that is added later is scheduled from the next `step` on. A
    tensor that is a learning rate is filled in place.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        schedule: of all groups, or a sequence with one for each.
        step: how many steps have been done.

    Attributes:
        last_epoch: how many steps have been done, by torch's name.
        base_lrs: the groups' base rates.

    Raises:
        ScheduleError: for other arguments, or a step that the schedule has not.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Schedule | Sequence[Schedule], step: int = 0
    ) -> None:
        # Not by torch's own, which replaces the optimizer's `step` to warn of an order that is no
        # matter here.
        if not isinstance(optimizer, Optimizer):
            raise ScheduleError(
                "optimizer", f"must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if isinstance(step, bool) or not isinstance(step, int):
            raise ScheduleError("step", f"must be a whole number of steps, got {step!r}")
        self.optimizer = optimizer
        self.schedule = schedule if isinstance(schedule, Schedule) else _several(schedule)
        self.base_lrs: list[float | Tensor] = []
        self._ahead: dict[int, tuple[Schedule, int, list[float]]] = {}
        self._set(step, stepped=False)
        self._watch()

    def step(self, epoch: int | None = None) -> None:
        """Go on to the rates of the next step.

        Raises:
            ScheduleError: if the optimizer has taken no step since, or the schedule is over;
                nothing has changed then. For an argument too, which torch deprecates.
        """
        if epoch is not None:
            raise ScheduleError(
                "epoch",
                f"step() takes no argument, got {epoch!r}; to go on from another step make "
                "Scheduler(optimizer, schedule, step=n)",
            )
        if self.last_epoch < 0:  # torch's SequentialLR takes a step back
            raise ScheduleError(
                "step",
                "something has set this scheduler back; join schedules by + and *, which torch's "
                "SequentialLR and ChainedScheduler do to schedulers",
            )
        if not self._stepped:
            raise ScheduleError(
                "step",
                f"the optimizer has taken no step since the scheduler was at step "
                f"{self.last_epoch}; call optimizer.step() first, and where a GradScaler may skip "
                "it: before = scaler.get_scale(); scaler.step(optimizer); scaler.update(); "
                "if scaler.get_scale() >= before: scheduler.step()",
            )
        self._set(self.last_epoch + 1, stepped=False)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the groups at this step, as numbers."""
        return list(self._rates(self._bases(), self.last_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Step, base rates and text of the schedules: numbers and strings alone."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "schedule": self._text(),
            "stepped": self._stepped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, which sets the optimizer's rates too.

        Raises:
            ScheduleError: for one of another schedule, another scheduler or other groups; nothing
                has changed then.
        """
        missing = [name for name in self.state_dict() if name not in state_dict]
        at = state_dict.get("last_epoch", "n")
        advice = f"to go on from there make Scheduler(optimizer, schedule, step={at})"
        if missing:
            raise ScheduleError(
                "state_dict", f"has no {missing[0]!r}: it is another scheduler's; {advice}"
            )
        if state_dict["schedule"] != self._text():
            raise ScheduleError(
                "state_dict",
                f"is of the schedule {state_dict['schedule']}, and this is {self._text()}; "
                + advice,
            )
        bases = list(state_dict["base_lrs"])
        if len(bases) != len(self.optimizer.param_groups):
            raise ScheduleError(
                "state_dict",
                f"is of {len(bases)} parameter groups and the optimizer has "
                f"{len(self.optimizer.param_groups)}; make the same groups first",
            )
        self._set(state_dict["last_epoch"], state_dict["stepped"], bases)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()  # copies of an optimizer are without hooks

    def _watch(self) -> None:
        """Learn of the optimizer's steps, without being kept alive by it."""
        known = ref(self, lambda _: handle.remove())

        def stepped(*_: Any) -> None:
            scheduler = known()
            if scheduler is not None:
                scheduler._stepped = True

        handle = self.optimizer.register_step_post_hook(stepped)

    def _set(self, step: int, stepped: bool, bases: list[float | Tensor] | None = None) -> None:
        bases = self._bases() if bases is None else bases
        rates = self._rates(bases, step)
        for group, base, rate in zip(self.optimizer.param_groups, bases, rates, strict=True):
            lr = group["lr"]
            group.setdefault("initial_lr", lr.clone().fill_(base) if _is_tensor(lr) else base)
            if _is_tensor(lr):
                lr.fill_(rate)
            else:
                group["lr"] = rate
        self.base_lrs, self.last_epoch, self._stepped = bases, step, stepped
        self._step_count = step + 1  # by which Accelerate and others count
        self._last_lr = [
            lr.clone() if _is_tensor(lr := group["lr"]) else lr
            for group in self.optimizer.param_groups
        ]

    def _bases(self) -> list[float | Tensor]:
        """Base rates of all groups; of those that are new, as they stand."""
        groups = self.optimizer.param_groups
        if len(groups) < len(self.base_lrs):
            raise ScheduleError(
                "optimizer",
                f"had {len(self.base_lrs)} parameter groups and has {len(groups)} now; make "
                f"Scheduler(optimizer, schedule, step={self.last_epoch}) for these",
            )
        new = groups[len(self.base_lrs) :]
        return [*self.base_lrs, *(float(g.get("initial_lr", g["lr"])) for g in new)]

    def _rates(self, bases: Sequence[float | Tensor], step: int) -> list[float]:
        if isinstance(self.schedule, Schedule):
            factors = [self._factor(0, self.schedule, step)] * len(bases)
        elif len(self.schedule) == len(bases):
            factors = [self._factor(i, one, step) for i, one in enumerate(self.schedule)]
        else:
            raise ScheduleError(
                "schedule",
                f"there are {len(self.schedule)} schedules for {len(bases)} parameter groups; make "
                "a Scheduler with one for each, or one for all",
            )
        return [float(base) * factor for base, factor in zip(bases, factors, strict=True)]

    def _factor(self, i: int, schedule: Schedule, step: int) -> float:
        known, first, factors = self._ahead.get(i, (None, 0, []))
        if known is schedule and first <= step < first + len(factors):
            return factors[step - first]
        factor = schedule(step)
        end = step + _AHEAD if schedule.steps is None else min(step + _AHEAD, schedule.steps + 1)
        with suppress(ScheduleError):  # of a step to come, which may never
            self._ahead[i] = schedule, step, schedule(np.arange(step, end)).tolist()
        return factor

    def _text(self) -> str | list[str]:
        if isinstance(self.schedule, Schedule):
            return self.schedule.text
        return [schedule.text for schedule in self.schedule]


def _several(schedules: Any) -> list[Schedule]:
    found = list(schedules) if isinstance(schedules, list | tuple) else [schedules]
    for schedule in found:
        if not isinstance(schedule, Schedule):
            raise ScheduleError(
                "schedule",
                f"must be a thalweg.schedules.Schedule, or one for each group, got {schedule!r}; "
                "schedules.parse(text, steps, steps_per_epoch) makes one of a text",
            )
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
