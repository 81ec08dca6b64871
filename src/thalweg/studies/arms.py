"""What a study compares: an optimizer with one level of each factor that is varied."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies.factors import FACTORS, Level, Levels
from thalweg.studies.spec import StudySpec

__all__ = ["KEYS", "Arm", "arms", "level_text", "level_words", "listed", "named"]

# Columns that tell arms apart, in all data frames.
KEYS = ("optimizer", *(factor.name for factor in FACTORS))


@dataclass(frozen=True)
class Arm:
    """An optimizer with a level of each factor; its learning rate is tuned.

    Attributes:
        optimizer: name in the registry.
        levels: of all factors, in the order of `FACTORS`.
        label: as tables print it, "Adam, mse"; the optimizer alone where nothing else varies.
        words: in a sentence, "Adam with mse".
        columns: what a row of any data frame says of it.
    """

    optimizer: str
    levels: Levels
    label: str
    words: str
    columns: dict[str, Level]

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Its rows."""
        mine = frame["optimizer"] == self.optimizer
        for factor, level in zip(FACTORS, self.levels, strict=True):
            mine &= frame[factor.name] == level
        return frame[mine]


def arms(spec: StudySpec) -> list[Arm]:
    """All arms of a study, by optimizer."""
    return [_arm(spec, name, levels) for name in spec.optimizers for levels in spec.combinations]


def _arm(spec: StudySpec, optimizer: str, levels: Levels) -> Arm:
    name, text, words = (
        OPTIMIZERS[optimizer].label,
        level_text(spec, levels),
        level_words(spec, levels),
    )
    label = f"{name}, {text}" if text else name
    factors = dict(zip((f.name for f in FACTORS), levels, strict=True))
    columns: dict[str, Level] = {"arm": label, "optimizer": optimizer, **factors, "levels": text}
    return Arm(optimizer, levels, label, f"{name} with {words}" if words else name, columns)


def level_text(spec: StudySpec, levels: Levels, without: str = "") -> str:
    """Levels of what varies, but for one factor, as tables print them: "mse, ordinal"."""
    pairs = zip(FACTORS, levels, strict=True)
    return ", ".join(f.text(n) for f, n in pairs if f in spec.varied and f.name != without)


def level_words(spec: StudySpec, levels: Levels) -> str:
    """Levels of what varies, as they stand in a sentence; empty where nothing does."""
    pairs = zip(FACTORS, levels, strict=True)
    phrases = [f.phrase(n) for f, n in pairs if f in spec.varied]
    return listed(phrases) if phrases else ""


def listed(words: Sequence[str]) -> str:
    """Words in a sentence: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def named(spec: StudySpec, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a record with their arm: columns ``arm`` and ``levels``.

    A record from before there was a factor leaves its level open, which is then filled in.
    """
    for factor in FACTORS:
        if factor not in spec.varied:
            frame = frame.assign(**{factor.name: spec.levels(factor)[0]})
    found = {(arm.optimizer, *arm.levels): arm for arm in arms(spec)}
    mine = [found[key] for key in frame[list(KEYS)].itertuples(index=False, name=None)]
    frame.insert(1, "arm", [arm.label for arm in mine])
    frame.insert(2, "levels", [arm.columns["levels"] for arm in mine])
    return frame
