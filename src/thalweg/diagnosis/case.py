"""What a diagnosis knows of a training, and what it suspects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from thalweg.diagnosis.scale import Scale
from thalweg.diagnosis.setting import Array, Outcome, Setting
from thalweg.landscape.flow import Flow
from thalweg.studies.intervals import shown
from thalweg.tasks import Task

__all__ = ["Case", "Suspicion", "Trial"]


@dataclass(frozen=True)
class Trial:
    """A change that is tried before it is advised.

    Attributes:
        words: the change, as the first words of an advice: "lower the learning rate to 1e-4".
        setting: the training with it.
        against: what it is compared with, if that is not the training as it is set.
        beyond: what it has to beat besides, as a better learning rate alone.
        ends: whether what counts is where both end, and not the best that each came to.
    """

    words: str
    setting: Setting
    against: Setting | None = None
    beyond: Setting | None = None
    ends: bool = False


@dataclass(frozen=True)
class Suspicion:
    """A cause that what was seen speaks for.

    Attributes:
        cause: its name.
        evidence: what was seen, one sentence or more.
        trials: changes that would mend it; how much they gain says how sure the cause is.
        confidence: how sure it is from what was seen alone; None if trials are to say.
        gain: what mending it would gain, in shares of what can be reached; None likewise.
        advice: what to do where no trial says, a sentence.
        suffices: what a trial has to gain to count, as a share of what it has to elsewhere: less
            where what was seen is known to do harm.
    """

    cause: str
    evidence: str
    trials: tuple[Trial, ...] = ()
    confidence: float | None = None
    gain: float | None = None
    advice: str = ""
    suffices: float = 1.0


@dataclass(frozen=True, eq=False)
class Case:
    """A training as it was seen.

    Attributes:
        given: the task as it came, whatever its values.
        setting: the training, of that task without samples that cannot be computed with.
        seeds: that it was trained from.
        base: what came of it.
        rates: what came of other learning rates, by the factor on the one that is set.
        scale: of validation metrics.
        flow: activations and gradients of one run, as `thalweg.landscape.flow` sees them.
        changed: settings with a change, by its words.
    """

    given: Task
    setting: Setting
    seeds: Sequence[int]
    base: Outcome
    rates: Mapping[float, Outcome]
    scale: Scale
    flow: Flow
    changed: dict[str, Setting] = field(default_factory=dict)

    def made(self, words: str, setting: Callable[[], Setting]) -> Setting:
        """The setting with a change, the same for all causes that want it."""
        if words not in self.changed:
            self.changed[words] = setting()
        return self.changed[words]

    @property
    def skill(self) -> float:
        """Of the training as it is set: 0 for knowing nothing, 1 for the best there was."""
        return float(self.scale.skill(self.scores(self.base)).mean())

    @property
    def best(self) -> Outcome:
        """Of the training at the best of the learning rates that were tried."""
        every = (self.base, *self.rates.values())
        return max(every, key=lambda o: self.scale.skill(self.scores(o)).mean())

    def scores(self, outcome: Outcome) -> Array:
        """Best validation metrics of a training, ``(seeds,)``; the floor where it diverged."""
        metric = self.scale.metric
        return outcome.best("validation_metric", self.scale.floor, metric.higher_is_better)

    def said(self, outcome: Outcome) -> str:
        """The metric of a training in a sentence: "a validation accuracy of 97.2 %"."""
        metric = self.scale.metric
        score = shown(metric, float(self.scores(outcome).mean()))
        return f"a validation {metric.name} of {score}"
