"""How often a suggested learning rate, trained with, is as good as the best one."""

from statistics import median

import numpy as np
import pandas as pd
import torch

from benchmarks.finders import FINDERS, SEEDS, ask
from benchmarks.good_ranges import good_ranges
from benchmarks.measure import shown
from thalweg import Task, lr_range_test

OURS = "Thalweg"
SEEDS_A_TRY = 8
GOAL = 0.9  # of the pairs


def ours(task: Task, optimizer: str) -> float | None:
    """What Thalweg suggests; of each try other seeds, by the random state that torch has."""
    first = SEEDS_A_TRY * (torch.initial_seed() % 1000)
    seeds = range(first, first + SEEDS_A_TRY)
    return lr_range_test(task, optimizer, seeds=seeds).suggestion


def judged(suggestions: pd.DataFrame, ranges: pd.DataFrame) -> pd.DataFrame:
    """Suggestions with ``low`` and ``high``, and ``outcome``: hit, low, high or none.

    Args:
        suggestions: as `benchmarks.finders.ask` gives them.
        ranges: as `benchmarks.good_ranges.good_ranges` gives them.
    """
    key = ["task", "optimizer"]
    found = suggestions.join(ranges[["low", "high"]], on=key, how="inner")
    rate = found["rate"]
    found["outcome"] = np.select(
        [rate.isna(), rate < found["low"], rate > found["high"]], ["none", "low", "high"], "hit"
    )
    return found


def pairs(found: pd.DataFrame) -> str:
    """Every pair, misses included, as Markdown."""
    tools = list(dict.fromkeys(found["tool"]))
    lines = [f"| | good range | {' | '.join(tools)} |", "|---" * (2 + len(tools)) + "|"]
    for (task, optimizer), pair in found.groupby(["task", "optimizer"], sort=False):
        first = pair.iloc[0]
        cells = [_cell(pair[pair["tool"] == tool]) for tool in tools]
        good = f"{first['low']:.2g} – {first['high']:.2g}"
        lines.append(f"| {task}, {optimizer} | {good} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(tries: pd.DataFrame) -> str:
    """The middle suggestion, and how many of the tries hit."""
    hits = int((tries["outcome"] == "hit").sum())
    rates = tries["rate"].dropna().sort_values()
    if not len(rates):
        return "**none**"
    middle = f"{rates.iloc[len(rates) // 2]:.2g}"
    if hits == len(tries):
        return f"{middle}, hit"
    misses = "/".join(dict.fromkeys(o for o in tries["outcome"] if o != "hit"))
    return f"{middle}, **{misses}**" if not hits else f"{middle}, {hits} of {len(tries)} ({misses})"


def totals(found: pd.DataFrame) -> str:
    """Per tool, of all pairs: how often it hits, how it misses and what it takes, as Markdown."""
    lines = [
        "| | tries inside the good range | pairs with most tries inside | too low | too high "
        "| none | off by, when missed | time |",
        "|---" * 8 + "|",
    ]
    for tool, tries in found.groupby("tool", sort=False):
        each = tries["outcome"].value_counts(normalize=True)
        of_pairs = (tries["outcome"] == "hit").groupby([tries["task"], tries["optimizer"]]).mean()
        share = {o: f"{each.get(o, 0):.0%}" for o in ("low", "high", "none")}
        lines.append(
            f"| {tool} | {each.get('hit', 0):.0%} | {(of_pairs > 0.5).sum()} of {len(of_pairs)} "
            f"| {share['low']} | {share['high']} | {share['none']} | {_off(tries)} "
            f"| {shown(median(tries['seconds']))} |"
        )
    return "\n".join(lines)


def _off(tries: pd.DataFrame) -> str:
    """Median factor between a miss and the nearer end of the range."""
    factor = np.maximum(tries["low"] / tries["rate"], tries["rate"] / tries["high"])
    missed = factor[tries["outcome"].isin(["low", "high"])]
    return f"{missed.median():.2g} times" if len(missed) else ""


def suggestions() -> str:
    """Totals, and the table of all pairs."""
    found = judged(ask({OURS: ours, **FINDERS}), good_ranges())
    return (
        f"{totals(found)}\n\nThe goal is {GOAL:.0%} of the pairs, and at least as many as any "
        f"other. {len(SEEDS)} tries a pair, each from its own weights and batches; the middle "
        f"suggestion is shown.\n\n{pairs(found)}"
    )
