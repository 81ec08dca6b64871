"""Records to verdict: pure functions from data frames to data frames and one sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from thalweg.studies.arms import KEYS, Arm, arms, listed
from thalweg.studies.effects import by_seed, effect_notes, effects_of
from thalweg.studies.intervals import CONFIDENCE, Interval, interval, margin, shown
from thalweg.studies.rates import rates_of
from thalweg.studies.spec import StudySpec
from thalweg.studies.store import OUTCOMES
from thalweg.tasks import Metric

__all__ = ["Analysis", "Interval", "analyse", "interval", "ranked"]

# Columns that say which arm a row is of.
_ARM = ("arm", *KEYS, "levels")
# Tied arms that the verdict names; of more it says how many.
NAMED = 4


@dataclass(frozen=True)
class Analysis:
    """What the records say; frames as `thalweg.studies.StudyResult` documents them."""

    trials: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    best_curves: pd.DataFrame
    effects: pd.DataFrame
    rates: pd.DataFrame
    verdict: str
    notes: list[str]


def analyse(
    spec: StudySpec,
    metric: Metric,
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    models: pd.DataFrame | None = None,
) -> Analysis:
    """Everything that follows from the records of a study.

    Args:
        spec: what was asked for.
        metric: of the task.
        runs: one row a run, as `Store.frames` gives them.
        curves: one row a run and epoch, likewise.
        models: one row a combination of levels, with ``parameters``, and ``start_loss`` and
            ``gradient_norm`` at the initial weights; what is not known may be left out.
    """
    trials, summary = ranked(spec, metric, runs)
    comparisons = _comparisons(metric, summary, runs)
    # Places follow the first in the order of the summary; what has no result is last.
    tied = [bool(comparisons["tied"].any()), *comparisons["tied"]]
    summary["tied"] = (tied + [False] * len(summary))[: len(summary)]
    effects = effects_of(spec, metric, summary, runs, models)
    return Analysis(
        trials,
        summary,
        comparisons,
        _best_curves(summary, curves),
        effects,
        rates_of(spec, summary, curves),
        _verdict(spec, metric, summary, comparisons),
        [*effect_notes(spec, metric, effects), *_notes(spec, summary, comparisons)],
    )


def ranked(
    spec: StudySpec, metric: Metric, runs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The settings of each arm, and arms at their best one from best to worst.

    These are the tables ``trials`` and ``summary``, the latter but for ``tied``.
    """
    compared = arms(spec)
    trials = _trials(spec, metric, compared, runs)
    return trials, _summary(spec, metric, compared, trials, runs)


def _sign(metric: Metric) -> float:
    return 1.0 if metric.higher_is_better else -1.0


def _trials(
    spec: StudySpec, metric: Metric, compared: Sequence[Arm], runs: pd.DataFrame
) -> pd.DataFrame:
    rows = []
    for arm in compared:
        of_arm = arm.of(runs)
        for lr in dict(spec.lrs)[arm.optimizer]:
            mine = of_arm[of_arm["lr"] == lr]
            done = mine[mine["outcome"] == "completed"]
            test = interval(done["test_metric"])
            # Student's t knows nothing of the ends of a scale.
            least = 0 if metric.percent or metric.nonnegative else None
            low, high = np.clip([test.low, test.high], least, 1 if metric.percent else None)
            rows.append(
                {
                    **arm.columns,
                    "lr": lr,
                    "n": len(done),
                    "test_metric": test.mean,
                    "low": float(low),
                    "high": float(high),
                    "interval": test.method,
                    "validation_metric": done["validation_metric"].mean(),
                    "validation_loss": done["validation_loss"].mean(),
                }
                | {o.replace(" ", "_"): int((mine["outcome"] == o).sum()) for o in OUTCOMES}
            )
    trials = pd.DataFrame(rows)
    trials["best"] = False
    for _, group in trials.groupby(list(KEYS)):
        # A setting in which any seed failed is no recommendation.
        sound = group[group["completed"] == len(spec.seeds)]
        if len(sound):
            order = [_sign(metric) * sound["validation_metric"], -sound["validation_loss"]]
            trials.loc[max(zip(*order, sound.index, strict=True))[2], "best"] = True
    return trials


def _summary(
    spec: StudySpec,
    metric: Metric,
    compared: Sequence[Arm],
    trials: pd.DataFrame,
    runs: pd.DataFrame,
) -> pd.DataFrame:
    rows = []
    for arm in compared:
        rates = dict(spec.lrs)[arm.optimizer]
        mine, settings = arm.of(runs), arm.of(trials)
        best = settings[settings["best"]]
        row: dict[str, Any] = {
            **arm.columns,
            "lr": math.nan,
            "test_metric": math.nan,
            "low": math.nan,
            "high": math.nan,
            "seeds": 0,
            "interval": "",
            "epochs_to_target": math.nan,
            "seconds_to_target": math.nan,
            "reached": 0,
            "lr_low": math.nan,
            "lr_high": math.nan,
            "lr_factor": math.nan,
            "lr_clipped": False,
            "diverged": int((mine["outcome"] == "diverged").sum()),
            "runs": len(mine),
            "edge": False,
        }
        if len(best):
            chosen = best.iloc[0]
            seeds = mine[mine["lr"] == chosen["lr"]]
            low, high = _good_range(metric, settings, chosen)
            row |= {k: chosen[k] for k in ("lr", "test_metric", "low", "high", "interval")}
            row |= {
                "seeds": int(chosen["n"]),
                "epochs_to_target": _median_time(seeds["epochs_to_target"]),
                "seconds_to_target": _median_time(seeds["seconds_to_target"]),
                "reached": int(seeds["epochs_to_target"].notna().sum()),
                "lr_low": low,
                "lr_high": high,
                "lr_factor": high / low,
                "lr_clipped": len(rates) > 1 and (low == rates[0] or high == rates[-1]),
                "edge": len(rates) > 1 and chosen["lr"] in (rates[0], rates[-1]),
            }
        rows.append(row)
    return pd.DataFrame(rows).sort_values(
        "test_metric",
        ascending=not metric.higher_is_better,
        na_position="last",
        kind="stable",
        ignore_index=True,
    )


def _good_range(metric: Metric, trials: pd.DataFrame, best: pd.Series) -> tuple[float, float]:
    """Lowest and highest learning rate whose validation metric is as good as the best."""
    top = best["validation_metric"]
    sound = trials[trials["completed"] == best["completed"]]
    # A hair of slack, so that exactly one point below still counts in floating point.
    good = sound[_sign(metric) * (sound["validation_metric"] - top) >= -margin(metric, top) - 1e-9]
    return float(good["lr"].min()), float(good["lr"].max())


def _median_time(times: pd.Series) -> float:
    """Median over seeds, where a seed that never got there took for ever; NaN for for ever."""
    median = float(times.fillna(math.inf).median())
    return median if math.isfinite(median) else math.nan


def _comparisons(metric: Metric, summary: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """First place against each other, by paired differences over seeds (Bonferroni)."""
    ranked = summary[summary["test_metric"].notna()]
    rows = []
    if len(ranked) > 1:
        level = 1 - (1 - CONFIDENCE) / (len(ranked) - 1)
        first = by_seed(runs, ranked.iloc[0])
        for _, other in ranked.iloc[1:].iterrows():
            difference = (first - by_seed(runs, other)).dropna()
            found = interval(difference, level)
            rows.append(
                {
                    **other[list(_ARM)],
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "confidence": level,
                    # Without an interval (one seed) nothing can be told apart.
                    "tied": not (found.low > 0 or found.high < 0),
                }
            )
    columns = [*_ARM, "difference", "low", "high", "confidence", "tied"]
    return pd.DataFrame(rows, columns=columns).astype({"tied": bool})


def _best_curves(summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    quantities = ("train_loss", "validation_loss", "validation_metric")
    arm = [*_ARM, "lr"]
    best = curves[[c for c in curves if c not in ("arm", "levels")]].merge(
        summary[arm], on=[*KEYS, "lr"]
    )
    named = {
        f"{q}_{name}": (q, how)
        for q in quantities
        for name, how in (("median", "median"), ("low", "min"), ("high", "max"))
    }
    return best.groupby([*arm, "epoch"], as_index=False, sort=False).agg(**named)


def _verdict(
    spec: StudySpec, metric: Metric, summary: pd.DataFrame, comparisons: pd.DataFrame
) -> str:
    ranked = summary[summary["test_metric"].notna()]
    if ranked.empty:
        return (
            f"No setting on {spec.task} was completed from every seed, so there is no verdict; "
            f"try lower learning rates."
        )
    first = ranked.iloc[0]
    words = _words(spec)
    result = f"test {metric.name} {shown(metric, first['test_metric'])}"
    if math.isfinite(first["low"]):
        result += f", 95 % interval {shown(metric, first['low'], first['high'])}"
    setting = f"{words[first['arm']]} at learning rate {first['lr']:g} ({result})"
    if len(ranked) == 1:
        kind = "arm" if spec.varied else "optimizer"
        return f"{setting} is the only {kind} with a result on {spec.task}."
    tied = [words[arm] for arm in comparisons.loc[comparisons["tied"], "arm"]]
    if not tied:
        others = "the other" if len(ranked) == 2 else f"all {len(ranked) - 1} others"
        return f"{setting} beats {others} on {spec.task}."
    if len(spec.seeds) == 1:
        return f"{setting} comes first on {spec.task}, but one seed cannot tell it from the others."
    rest = len(ranked) - 1 - len(tied)
    clause = f", and beats the other {_counted(rest)}" if rest else ""
    # Arms have long names; those that are many are marked in the table.
    equals = f"{len(tied)} others" if spec.varied and len(tied) > NAMED else listed(tied)
    return (
        f"A tie on {spec.task}: {setting} comes first, but {len(spec.seeds)} seeds do not tell it "
        f"from {equals}{clause}."
    )


def _words(spec: StudySpec) -> dict[str, str]:
    """What a sentence calls each arm."""
    return {arm.label: arm.words for arm in arms(spec)}


def _notes(spec: StudySpec, summary: pd.DataFrame, comparisons: pd.DataFrame) -> list[str]:
    notes = [factor.caution for factor in spec.varied if factor.caution]
    words = _words(spec)
    methods = sorted({m for m in summary["interval"] if m})
    if methods:
        notes.append(
            f"Intervals are 95 % over seeds ({'; '.join(methods)}). They cover initial weights "
            f"and batch order, not the choice of test samples."
        )
    if len(comparisons):
        count = len(comparisons)
        notes.append(
            f"Ties: paired differences over seeds to the first place, {count} "
            f"comparison{'s' * (count > 1)}, each at {100 * comparisons['confidence'][0]:.3g} % "
            f"(Bonferroni) so that all together hold at 95 %."
        )
    edges = [words[arm] for arm in summary.loc[summary["edge"], "arm"]]
    if edges:
        notes.append(
            f"The best learning rate of {listed(edges)} is at an end of the rates tried; a wider "
            f"range may do better."
        )
    failed = [words[arm] for arm in summary.loc[summary["test_metric"].isna(), "arm"]]
    if failed:
        notes.append(f"{listed(failed)}: no setting was completed from every seed.")
    return notes


def _counted(n: int) -> str:
    return "one" if n == 1 else str(n)
