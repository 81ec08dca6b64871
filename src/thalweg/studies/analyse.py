"""Records to verdict: pure functions from data frames to data frames and one sentence."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies.spec import StudySpec
from thalweg.studies.store import OUTCOMES
from thalweg.tasks import Metric

__all__ = ["Analysis", "Interval", "analyse", "interval"]

CONFIDENCE = 0.95
# Below this many seeds a bootstrap covers too little, and Student's t is used.
BOOTSTRAP_FROM = 10
STUDENT = "Student's t"
# "As good as the best" for sensitivity: one percentage point, or 1 % of an error.
NEAR = 0.01


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and how sure it is.

    Attributes:
        mean: NaN of no values.
        low, high: NaN of fewer than two values.
        method: "Student's t, 5 seeds".
    """

    mean: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Analysis:
    """What the records say; frames as `thalweg.studies.StudyResult` documents them."""

    trials: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    best_curves: pd.DataFrame
    verdict: str
    notes: list[str]


def interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of a mean over seeds.

    Student's t below ten values; from there the bias-corrected and accelerated bootstrap (Efron,
    1987) of `scipy.stats.bootstrap`, with a fixed seed.

    Args:
        values: one finite number a seed.
        confidence: in (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        mean = float(x[0]) if n else math.nan
        return Interval(mean, math.nan, math.nan, f"no interval, {n} seed{'s' * (n != 1)}")
    mean = float(x.mean())
    method = f"{'bootstrap' if n >= BOOTSTRAP_FROM else STUDENT}, {n} seeds"
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, method)
    if n < BOOTSTRAP_FROM:
        half = stdtrit(n - 1, 0.5 + confidence / 2) * x.std(ddof=1) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half, method)
    from scipy import stats  # takes half a second to import

    with warnings.catch_warnings():
        # Values that take few distinct levels make SciPy warn; the interval stands.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (x,),
            np.mean,
            confidence_level=confidence,
            n_resamples=9999,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), method)


def analyse(spec: StudySpec, metric: Metric, runs: pd.DataFrame, curves: pd.DataFrame) -> Analysis:
    """Everything that follows from the records of a study.

    Args:
        spec: what was asked for.
        metric: of the task.
        runs: one row a run, as `Store.frames` gives them.
        curves: one row a run and epoch, likewise.
    """
    trials = _trials(spec, metric, runs)
    summary = _summary(spec, metric, trials, runs)
    comparisons = _comparisons(metric, summary, runs)
    tied = set(comparisons.loc[comparisons["tied"], "optimizer"])
    first = list(summary["optimizer"][:1]) if summary["test_metric"].notna().any() else []
    summary["tied"] = summary["optimizer"].isin(tied | set(first if tied else []))
    return Analysis(
        trials,
        summary,
        comparisons,
        _best_curves(summary, curves),
        _verdict(spec, metric, summary, comparisons),
        _notes(spec, summary, comparisons),
    )


def _sign(metric: Metric) -> float:
    return 1.0 if metric.higher_is_better else -1.0


def _trials(spec: StudySpec, metric: Metric, runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for optimizer, rates in spec.lrs:
        for lr in rates:
            mine = runs[(runs["optimizer"] == optimizer) & (runs["lr"] == lr)]
            done = mine[mine["outcome"] == "completed"]
            test = interval(done["test_metric"])
            # Student's t knows nothing of the ends of a scale.
            low, high = np.clip(
                [test.low, test.high], *((0, 1) if metric.percent else (None, None))
            )
            rows.append(
                {
                    "optimizer": optimizer,
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
    for _, group in trials.groupby("optimizer"):
        # A setting in which any seed failed is no recommendation.
        sound = group[group["completed"] == len(spec.seeds)]
        if len(sound):
            order = [_sign(metric) * sound["validation_metric"], -sound["validation_loss"]]
            trials.loc[max(zip(*order, sound.index, strict=True))[2], "best"] = True
    return trials


def _summary(
    spec: StudySpec, metric: Metric, trials: pd.DataFrame, runs: pd.DataFrame
) -> pd.DataFrame:
    rows = []
    for optimizer, rates in spec.lrs:
        mine = runs[runs["optimizer"] == optimizer]
        best = trials[(trials["optimizer"] == optimizer) & trials["best"]]
        row = {
            "optimizer": optimizer,
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
            low, high = _good_range(metric, trials[trials["optimizer"] == optimizer], chosen)
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
    margin = NEAR if metric.percent else NEAR * abs(top)
    sound = trials[trials["completed"] == best["completed"]]
    # A hair of slack, so that exactly one point below still counts in floating point.
    good = sound[_sign(metric) * (sound["validation_metric"] - top) >= -margin - 1e-9]
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
        first = _by_seed(runs, ranked.iloc[0])
        for _, other in ranked.iloc[1:].iterrows():
            difference = (first - _by_seed(runs, other)).dropna()
            found = interval(difference, level)
            rows.append(
                {
                    "optimizer": other["optimizer"],
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "confidence": level,
                    # Without an interval (one seed) nothing can be told apart.
                    "tied": not (found.low > 0 or found.high < 0),
                }
            )
    columns = ["optimizer", "difference", "low", "high", "confidence", "tied"]
    return pd.DataFrame(rows, columns=columns).astype({"tied": bool})


def _by_seed(runs: pd.DataFrame, row: pd.Series) -> pd.Series:
    mine = runs[(runs["optimizer"] == row["optimizer"]) & (runs["lr"] == row["lr"])]
    return mine[mine["outcome"] == "completed"].set_index("seed")["test_metric"]


def _best_curves(summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    quantities = ("train_loss", "validation_loss", "validation_metric")
    best = curves.merge(summary[["optimizer", "lr"]], on=["optimizer", "lr"])
    named = {
        f"{q}_{name}": (q, how)
        for q in quantities
        for name, how in (("median", "median"), ("low", "min"), ("high", "max"))
    }
    return best.groupby(["optimizer", "lr", "epoch"], as_index=False, sort=False).agg(**named)


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
    name = OPTIMIZERS[first["optimizer"]].label
    result = f"test {metric.name} {_shown(metric, first['test_metric'])}"
    if math.isfinite(first["low"]):
        result += f", 95 % interval {_shown(metric, first['low'], first['high'])}"
    setting = f"{name} at learning rate {first['lr']:g} ({result})"
    if len(ranked) == 1:
        return f"{setting} is the only optimizer with a result on {spec.task}."
    tied = [OPTIMIZERS[o].label for o in comparisons.loc[comparisons["tied"], "optimizer"]]
    if not tied:
        others = "the other" if len(ranked) == 2 else f"all {len(ranked) - 1} others"
        return f"{setting} beats {others} on {spec.task}."
    if len(spec.seeds) == 1:
        return f"{setting} comes first on {spec.task}, but one seed cannot tell it from the others."
    rest = len(ranked) - 1 - len(tied)
    clause = f", and beats the other {_counted(rest)}" if rest else ""
    return (
        f"A tie on {spec.task}: {setting} comes first, but {len(spec.seeds)} seeds do not tell it "
        f"from {_listed(tied)}{clause}."
    )


def _notes(spec: StudySpec, summary: pd.DataFrame, comparisons: pd.DataFrame) -> list[str]:
    notes = []
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
    edges = [OPTIMIZERS[o].label for o in summary.loc[summary["edge"], "optimizer"]]
    if edges:
        notes.append(
            f"The best learning rate of {_listed(edges)} is at an end of the rates tried; a wider "
            f"range may do better."
        )
    failed = [OPTIMIZERS[o].label for o in summary.loc[summary["test_metric"].isna(), "optimizer"]]
    if failed:
        notes.append(f"{_listed(failed)}: no setting was completed from every seed.")
    return notes


def _shown(metric: Metric, *values: float) -> str:
    if metric.percent:
        return " to ".join(f"{100 * v:.1f}" for v in values) + " %"
    return " to ".join(f"{v:.4g}" for v in values)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _counted(n: int) -> str:
    return "one" if n == 1 else str(n)
