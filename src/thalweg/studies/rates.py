"""Too small, right, too large: a few of many learning rates, from end to end."""

import pandas as pd

from thalweg.optim.registry import OPTIMIZERS
from thalweg.studies.arms import KEYS
from thalweg.studies.spec import StudySpec

__all__ = ["RATE_COLUMNS", "few_rates", "rates_of"]

RATE_COLUMNS = ("optimizer", "lr", "verdict", "step", "loss", "low", "high")


def few_rates(
    optimizer: str, curves: pd.DataFrame, good: tuple[float, float], right: float
) -> pd.DataFrame:
    """Up to five rates, lowest and highest and the right one among them.

    Args:
        optimizer: as legends print it.
        curves: a row a rate, seed and step: ``lr, seed, step, loss``; NaN, or no row, from where
            a run has diverged.
        good: lowest and highest of the rates that are as good as the best.
        right: one of the rates.

    Returns:
        A row a rate and step: ``optimizer, lr, verdict, step, loss, low, high``, mean and range of
        the loss over seeds.
    """
    tried = sorted(set(curves["lr"]))
    place = tried.index(right)
    shown = {0, place // 2, place, (place + len(tried)) // 2, len(tried) - 1}
    chosen = curves[curves["lr"].isin([tried[i] for i in shown])]
    last = chosen["step"].max()
    ended = chosen[(chosen["step"] == last) & chosen["loss"].notna()].groupby("lr").size()
    whole = ended.reindex(chosen["lr"].unique(), fill_value=0) == chosen["seed"].nunique()
    frame = chosen.groupby(["lr", "step"])["loss"].agg(["mean", "min", "max"]).reset_index()
    frame.columns = pd.Index(["lr", "step", "loss", "low", "high"])

    def verdict(lr: float) -> str:
        if lr < min(good[0], right):
            return "too small"
        if lr <= max(good[1], right) and whole[lr]:
            return "right"
        return "too large" if whole[lr] else "too large, diverges"

    words = [verdict(lr) for lr in frame["lr"]]
    return frame.assign(optimizer=optimizer, verdict=words)[list(RATE_COLUMNS)]


def rates_of(spec: StudySpec, summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Of each optimizer's best arm, as `few_rates` gives them; nothing of one that has none.

    Args:
        spec: what was asked for.
        summary: one row an arm, best first.
        curves: one row a run and epoch.
    """
    found = [pd.DataFrame(columns=list(RATE_COLUMNS))]
    for name, arms in summary[summary["lr"].notna()].groupby("optimizer", sort=False):
        arm = arms.iloc[0]
        tried = dict(spec.lrs)[str(name)]
        mine = curves[(curves[list(KEYS)] == arm[list(KEYS)]).all(axis=1)]
        if len(tried) < 3 or mine.empty:
            continue
        # A run that diverged in its first epoch has no row at all.
        every = pd.MultiIndex.from_product(
            [tried, spec.seeds, sorted(set(mine["step"]))], names=["lr", "seed", "step"]
        )
        losses = mine.set_index(["lr", "seed", "step"])["train_loss"].reindex(every)
        found.append(
            few_rates(
                OPTIMIZERS[str(name)].label,
                losses.rename("loss").reset_index(),
                (arm["lr_low"], arm["lr_high"]),
                arm["lr"],
            )
        )
    return pd.concat(found[1:] or found, ignore_index=True)
