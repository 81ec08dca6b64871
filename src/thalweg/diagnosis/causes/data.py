"""Causes in the data."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thalweg.diagnosis.case import Case, Suspicion, Trial
from thalweg.diagnosis.changes import PARTS, standardised
from thalweg.diagnosis.scale import error_of_constant
from thalweg.numbers import number
from thalweg.studies.intervals import shown

__all__ = ["inputs_not_normalised", "labels_random", "nan_in_data"]

# Inputs of this size, or of sizes so far apart, are suspected.
SIZE = 5.0
APART = 30.0
# Half of what counts elsewhere, as no network that is initialised as usual is made for such inputs.
KNOWN = 0.5
LOWER = (0.1, 0.01)  # rates besides the one that is set, by the factor on it
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)

# Labels are called random only if simple models, on as many samples, see nothing in them either.
SAMPLES = 3000
FOLDS = 5
SURE = 0.01
LUCKY = 3.0  # standard errors that the best of many trainings gets beyond chance by luck


def nan_in_data(case: Case) -> Suspicion | None:
    """Values that nothing can be computed with."""
    found = []
    for part in PARTS:
        split = getattr(case.given, part)
        for role, side in (("inputs", split.x), ("targets", split.y)):
            for tensor in tree_leaves(side):
                if not tensor.is_floating_point():
                    continue
                bad = ~tensor.isfinite().reshape(len(tensor), -1)
                if not bool(bad.any()):
                    continue
                rows, columns = bad.any(1), bad.any(0)
                which = f" in {int(columns.sum())} of {bad.shape[1]} features" * (bad.shape[1] > 1)
                found.append(
                    f"{int(rows.sum()):,} of {len(rows):,} {part} samples have {role} that are NaN "
                    f"or infinite{which}, the first at index {int(rows.nonzero()[0])}"
                )
    if not found:
        return None
    return Suspicion(
        "nan_in_data",
        f"{'; '.join(found)}. One such sample makes the loss of its batch NaN, and with it all "
        f"weights. {_cleaned(case)} training comes to {case.said(case.base)}.",
        confidence=1.0,
        gain=1.0,
        advice="Leave these samples out or fill their values in, by the median of the training "
        "data say, before training; what else is said here is of data without them.",
    )


def _cleaned(case: Case) -> str:
    fewer = any(len(getattr(case.setting.task, p)) < len(getattr(case.given, p)) for p in PARTS)
    return "Without them" if fewer else "With the median of each feature in their place"


def inputs_not_normalised(case: Case) -> Suspicion | None:
    """Inputs far from mean 0 and standard deviation 1, where nothing mends it first."""
    task = case.setting.task
    with torch.random.fork_rng(devices=[]):
        layers = [m for m in task.model().modules() if not list(m.children())]
    if layers and isinstance(layers[0], NORMS):
        return None
    worst = ""
    for x in tree_leaves(task.train.x):
        if not x.is_floating_point():
            continue
        flat = x.reshape(len(x), -1).double()
        mean, std = flat.mean(0), flat.std(0, correction=0)
        moving = std > 0
        if not bool(moving.any()):
            continue
        sizes = std[moving]
        size = float(flat.square().mean().sqrt())
        apart = float(sizes.max() / sizes.median())
        if size > SIZE or size < 1 / SIZE / 4 or apart > APART:
            worst = (
                f"The inputs have means from {number(float(mean.min()))} to "
                f"{number(float(mean.max()))} and standard deviations from "
                f"{number(float(sizes.min()))} to {number(float(sizes.max()))}"
            )
    if not worst:
        return None
    return Suspicion(
        "inputs_not_normalised",
        f"{worst}; layers are initialised for inputs around 0 of size 1. As it is set the training "
        f"comes to {case.said(case.base)}.",
        _standardised(case),
        suffices=KNOWN,
    )


def _standardised(case: Case) -> tuple[Trial, ...]:
    """At the rate that is set; and at lower ones, where it has to beat the best rate alone."""
    words = (
        "standardise the inputs (subtract the mean of the training data, divide by its standard "
        "deviation)"
    )
    at_set = case.setting.but(task=standardised(case.setting.task))
    slower = [factor * at_set.lr for factor in LOWER]
    return (
        Trial(words, at_set),
        *(
            Trial(
                f"{words}, and lower the learning rate to {number(lr)}",
                at_set.but(lr=lr),
                beyond=case.best.setting,
            )
            for lr in slower
        ),
    )


def labels_random(case: Case) -> Suspicion | None:
    """Targets that say nothing of the inputs: to the network, and to simple models."""
    scale = case.scale
    luck = LUCKY * error_of_constant(case.setting.task)
    if abs(scale.reach - scale.floor) > max(0.1 * abs(scale.perfect - scale.floor), luck):
        return None
    train = case.setting.task.train
    if not (
        isinstance(train.x, Tensor)
        and isinstance(train.y, Tensor)
        and train.y.numel() == len(train)
    ):
        return None
    known = _simple_models(train.x, train.y)
    if known is None:
        return None
    words, chance, p = known
    if p < SURE:
        return None
    metric = scale.metric
    fits = _fits(case)
    return Suspicion(
        "labels_random",
        f"On validation data no learning rate gets beyond {case.said(case.best)}, where knowing "
        f"nothing gets {shown(metric, scale.floor)}{fits}. Simple models, cross-validated on the "
        f"training data, see nothing in the labels either: {words} (chance {chance}, p = {p:.2f}).",
        confidence=0.95,
        gain=1.0,
        advice="Look at a few samples with their labels: they do not belong together. Were inputs "
        "and labels shuffled or sorted apart, or joined by the wrong key?",
    )


def _fits(case: Case) -> str:
    grid = case.base.grid("train_loss")
    first, last = (float(np.nanmean(grid[:, i])) for i in (0, -1)) if grid.size else (0.0, 0.0)
    if not last < 0.8 * first:
        return ""
    return f", though the training loss falls from {number(first)} to {number(last)}, by heart"


def _simple_models(x: Tensor, y: Tensor) -> tuple[str, str, float] | None:
    """How well simple models predict, what chance is, and how often chance does as well."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    inputs = x[order].reshape(len(order), -1).double().numpy()
    targets = y[order].flatten().numpy()
    classes = not y.is_floating_point()
    if classes and min(np.bincount(targets)[np.unique(targets)]) < FOLDS:
        return None
    width = min(50, inputs.shape[1], len(inputs) // FOLDS)
    ready = [StandardScaler(), PCA(width, random_state=0)]
    near = (KNeighborsClassifier if classes else KNeighborsRegressor)(15)
    trees = (ExtraTreesClassifier if classes else ExtraTreesRegressor)(
        100, min_samples_leaf=2, random_state=0
    )
    models = {"nearest neighbours": make_pipeline(*ready, near), "trees": trees}
    found: dict[str, tuple[str, float]] = {}
    most = 0.0
    for name, model in models.items():
        predicted = cross_val_predict(model, inputs, targets, cv=FOLDS)
        if classes:
            most = np.bincount(targets).max() / len(targets)
            right = int((predicted == targets).sum())
            p = float(stats.binomtest(right, len(targets), most, alternative="greater").pvalue)
            found[name] = f"{name} {right / len(targets):.1%}", p
        else:
            r, p = _correlation(predicted, targets)
            found[name] = f"{name} correlation {r:.2f}", p
    # The smaller of two p-values, by Bonferroni.
    p = min(1.0, len(found) * min(p for _, p in found.values()))
    return ", ".join(w for w, _ in found.values()), f"{most:.1%}" if classes else "0", p


def _correlation(
    predicted: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[float, float]:
    if np.ptp(predicted) == 0 or np.ptp(targets) == 0:
        return 0.0, 1.0
    found = stats.spearmanr(predicted, targets, alternative="greater")
    return float(found.statistic), float(found.pvalue)
