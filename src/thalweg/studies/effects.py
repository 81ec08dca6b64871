"""What each further factor does: its levels side by side, all else being equal."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies.arms import KEYS, level_text, listed
from thalweg.studies.factors import FACTORS, Factor, Level, Levels
from thalweg.studies.intervals import CONFIDENCE, interval, points
from thalweg.studies.spec import StudySpec
from thalweg.tasks import Metric

__all__ = ["by_seed", "effect_notes", "effects_of"]

# Contexts that a sentence names, where all of them agree.
NAMED = 3
_ARM_FIELDS = (
    "test_metric", "low", "high", "seeds", "lr", "epochs_to_target", "seconds_to_target",
    "diverged", "runs",
)  # fmt: skip
_MODEL_FIELDS = ("parameters", "start_loss", "gradient_norm")
_COLUMNS = (
    "factor", "context", "level", *KEYS, *_ARM_FIELDS[:4], "difference", "difference_low",
    "difference_high", "confidence", "tied", *_ARM_FIELDS[4:7], "seconds", *_ARM_FIELDS[7:],
    *_MODEL_FIELDS,
)  # fmt: skip


def by_seed(runs: pd.DataFrame, setting: "pd.Series[Any]") -> "pd.Series[float]":
    """Test metrics of the completed runs of an arm at a learning rate, by seed."""
    return _completed(runs, setting).set_index("seed")["test_metric"]


def _completed(runs: pd.DataFrame, setting: "pd.Series[Any]") -> pd.DataFrame:
    mine = runs["outcome"] == "completed"
    for key in (*KEYS, "lr"):
        mine &= runs[key] == setting[key]
    return runs[mine]


def effects_of(
    spec: StudySpec,
    metric: Metric,
    summary: pd.DataFrame,
    runs: pd.DataFrame,
    models: pd.DataFrame | None,
) -> pd.DataFrame:
    """One row a level of a varied factor and context, as `StudyResult.effects` documents them.

    Args:
        spec: what was asked for.
        metric: of the task.
        summary: one row an arm.
        runs: one row a run.
        models: one row a combination of levels, or None.
    """
    rows: list[dict[str, Any]] = []
    for factor in spec.varied:
        mine = [
            _row(spec, factor, optimizer, levels, summary, runs, models)
            for optimizer in spec.optimizers
            for levels in _by_context(spec, factor)
        ]
        _compare(factor, spec, mine, runs)
        rows += mine
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    return frame.astype({"tied": bool})


def _by_context(spec: StudySpec, factor: Factor) -> list[Levels]:
    """All combinations of levels, those of one factor next to each other."""
    others = [("",) if f is factor else spec.levels(f) for f in FACTORS]
    return [
        tuple(level if f is factor else n for f, n in zip(FACTORS, context, strict=True))
        for context in product(*others)
        for level in spec.levels(factor)
    ]


def _row(
    spec: StudySpec,
    factor: Factor,
    optimizer: str,
    levels: Levels,
    summary: pd.DataFrame,
    runs: pd.DataFrame,
    models: pd.DataFrame | None,
) -> dict[str, Any]:
    keys = dict(zip(KEYS, (optimizer, *levels), strict=True))
    arm = _where(summary, keys).iloc[0]
    others = level_text(spec, levels, without=factor.name)
    label = OPTIMIZERS[optimizer].label
    model = pd.DataFrame() if models is None else _where(models, keys)
    return {
        "factor": factor.name,
        "context": f"{label}, {others}" if others else label,
        "level": factor.text(keys[factor.name]),
        **keys,
        **arm[list(_ARM_FIELDS)],
        "difference": math.nan,
        "difference_low": math.nan,
        "difference_high": math.nan,
        "confidence": math.nan,
        "tied": False,
        "seconds": float(_completed(runs, arm)["seconds"].mean()),
        **{f: model[f].iloc[0] if f in model and len(model) else math.nan for f in _MODEL_FIELDS},
    }


def _where(frame: pd.DataFrame, keys: Mapping[str, Level]) -> pd.DataFrame:
    for key, value in keys.items():
        if key in frame:
            frame = frame[frame[key] == value]
    return frame


def _compare(
    factor: Factor, spec: StudySpec, rows: list[dict[str, Any]], runs: pd.DataFrame
) -> None:
    """Fill in the differences to the first level of each context (Bonferroni within a factor)."""
    count = len(spec.levels(factor))
    pairs = [
        (rows[i - i % count], row)
        for i, row in enumerate(rows)
        if i % count and not math.isnan(row["test_metric"] + rows[i - i % count]["test_metric"])
    ]
    for first, row in pairs:
        level = 1 - (1 - CONFIDENCE) / len(pairs)
        values = by_seed(runs, pd.Series(row)) - by_seed(runs, pd.Series(first))
        found = interval(values.dropna(), level)
        row |= {
            "difference": found.mean,
            "difference_low": found.low,
            "difference_high": found.high,
            "confidence": level,
            # Without an interval (one seed) nothing can be told apart.
            "tied": not (found.low > 0 or found.high < 0),
        }


def effect_notes(spec: StudySpec, metric: Metric, effects: pd.DataFrame) -> list[str]:
    """What each varied factor does, a sentence each, and how that was found."""
    notes = []
    for factor in spec.varied:
        mine = effects[effects["factor"] == factor.name]
        first = factor.text(spec.levels(factor)[0])
        others = [mine[mine[factor.name] == level] for level in spec.levels(factor)[1:]]
        # Levels that tie everywhere are told together.
        even = [rows["tied"].all() and rows["difference_low"].notna().any() for rows in others]
        together = [rows for rows, is_even in zip(others, even, strict=True) if is_even]
        if len(together) < 2:
            together = []
        clauses = [
            clause
            for rows in others
            if not any(rows is one for one in together)
            for clause in _clauses(spec, metric, first, rows)
        ]
        if together:
            levels = listed([rows["level"].iloc[0] for rows in together])
            clauses.append(
                f"{_contexts(spec, together[0], together[0])}, {first} ties with {levels}"
            )
        name = factor.words
        notes.append(f"{name[0].upper()}{name[1:]}: {'; '.join(clauses)}.")
        compared = mine[mine["confidence"].notna()]
        if len(compared) > 1 and len(spec.seeds) > 1:
            notes.append(
                f"Differences between levels of {name} are paired over seeds: {len(compared)} "
                f"comparisons to {first}, each at {100 * compared['confidence'].iloc[0]:.3g} % "
                f"(Bonferroni) so that all together hold at 95 %."
            )
    return notes


def _clauses(spec: StudySpec, metric: Metric, first: str, rows: pd.DataFrame) -> list[str]:
    """How one level does against the first, contexts with the same answer together."""
    level = rows["level"].iloc[0]
    sign = 1 if metric.higher_is_better else -1
    known = rows[rows["difference"].notna()]
    clear, tied = known[~known["tied"]], known[known["tied"]]
    better = clear[sign * clear["difference"] > 0]
    worse = clear[sign * clear["difference"] < 0]

    def where(some: pd.DataFrame) -> str:
        return _contexts(spec, some, rows)

    found = []
    for winner, loser, some in ((first, level, worse), (level, first, better)):
        if len(some):
            found.append(f"{where(some)}, {winner} beats {loser} by {_amount(metric, some)}")
    if len(tied):
        both = "they" if found else f"{first} and {level}"
        one_seed = tied["difference_low"].isna().all()
        answer = "cannot be told apart by one seed" if one_seed else "tie"
        found.append(f"{where(tied)}{'' if found else ','} {both} {answer}")
    lost = rows[rows["difference"].isna()]
    if len(lost):
        found.append(f"{where(lost)}, {first} or {level} has no result")
    return found


def _contexts(spec: StudySpec, some: pd.DataFrame, every: pd.DataFrame) -> str:
    """Which of the contexts, in a sentence."""
    if len(some) == len(every) > NAMED:
        return f"with all {len(every)} {'optimizers' if len(spec.varied) == 1 else 'contexts'}"
    return f"with {listed([_in_sentence(context) for context in some['context']])}"


def _in_sentence(context: str) -> str:
    """A context among others: "SGD (ordinal)"."""
    name, _, more = context.partition(", ")
    return f"{name} ({more})" if more else name


def _amount(metric: Metric, rows: pd.DataFrame) -> str:
    """By how much the better level of each row is better."""
    unit = " points" if metric.percent else f" in {metric.name}"
    sizes = rows["difference"].abs()
    if len(rows) > 1:
        return f"{_range(metric, [sizes.min(), sizes.max()])}{unit}"
    row = rows.iloc[0]
    ends = sorted(abs(row[end]) for end in ("difference_low", "difference_high"))
    at = f"{100 * row['confidence']:.3g} %"
    return f"{points(metric, sizes.iloc[0])}{unit} ({at} interval {points(metric, *ends)})"


def _range(metric: Metric, ends: Sequence[float]) -> str:
    texts = list(dict.fromkeys(points(metric, end) for end in ends))
    return " to ".join(texts)
