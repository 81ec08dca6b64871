"""What a diagnosis found."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from thalweg.diagnosis.case import Case

__all__ = ["Diagnosis", "Finding"]

# Of causes whose names are not words already.
TITLES = {
    "lr_too_high": "learning rate too high",
    "lr_too_low": "learning rate too low",
    "dead_relu": "dead ReLUs",
    "zero_init": "weights that start alike",
    "nan_in_data": "NaN in the data",
}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training; or that nothing is.

    Attributes:
        cause: its name.
        confidence: how sure it is, 0 to 1.
        evidence: what was seen, one sentence or more.
        advice: what to do, and what that gained where it was tried.
        gain: what it gained, as a share of what the best of all trainings reached over knowing
            nothing.
    """

    cause: str
    confidence: float
    evidence: str
    advice: str
    gain: float

    @property
    def title(self) -> str:
        """The cause in words."""
        return TITLES.get(self.cause, self.cause.replace("_", " "))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "cause": self.cause,
            "confidence": round(self.confidence, 3),
            "evidence": self.evidence,
            "advice": self.advice,
        }


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What is wrong with a training.

    Attributes:
        case: what was seen.
        findings: one or more, best first.
        trials: changes that were tried, a row each: ``cause, change, gain, low, high, metric``.
    """

    case: Case = field(repr=False)
    findings: tuple[Finding, ...]
    trials: pd.DataFrame = field(repr=False)

    def to_html(self) -> str:
        """One page with the findings and all that they rest on."""
        from thalweg.report.diagnosis import diagnosis_html

        return diagnosis_html(self)
