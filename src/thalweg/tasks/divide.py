"""Which samples are trained on, which settings are chosen on, and which are kept for the end."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPLIT_SEED", "divide"]

# The split is part of the task, so that seeds vary initial weights and batches alone.
SPLIT_SEED = 0

Indices: TypeAlias = NDArray[np.int64]


def divide(
    n: int,
    *,
    classes: Sequence[Any] | NDArray[Any] | None = None,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    order: Sequence[Any] | NDArray[Any] | None = None,
) -> tuple[Indices, Indices, Indices]:
    """60 % of the samples for training, 20 % each for validation and test; always the same ones.

    Args:
        n: how many samples.
        classes: of each sample, one value; all parts have about the same share of each class.
        groups: of each sample, one value; samples of one group stay together. Shares are then of
            groups, and by class as far as the groups allow.
        order: of each sample, a number or a time; training has the earliest, test the latest, and
            samples of one time stay together.

    Returns:
        Indices of training, validation and test samples: disjoint, and together all of them. In
        random order, or from the earliest to the latest.

    Raises:
        ValueError: if there are too few samples, groups or times, or too few samples of a class;
            the message is a sentence for the person whose data they are.
    """
    for name, values in (("classes", classes), ("groups", groups), ("order", order)):
        if values is not None and len(values) != n:
            raise ValueError(f"{name} has {len(values)} values for {n} samples")
    if n < 3:
        raise ValueError(f"three parts need at least 3 samples; there are {n}")
    if groups is not None and order is not None:
        raise ValueError("samples are divided by group or by time, not by both")
    if order is not None:
        return _by_time(np.asarray(order))
    if groups is not None:
        return _by_group(np.asarray(groups), None if classes is None else np.asarray(classes))
    if classes is not None:
        _enough(np.asarray(classes))
    return _at_random(np.arange(n), None if classes is None else np.asarray(classes))


def _at_random(
    samples: NDArray[Any], classes: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    from sklearn.model_selection import train_test_split

    def cut(samples: Any, share: float) -> Any:
        stratify = None if classes is None else classes[samples]
        return train_test_split(
            samples, test_size=share, random_state=SPLIT_SEED, stratify=stratify
        )

    rest, test = cut(samples, 0.2)
    train, validation = cut(rest, 0.25)
    return train, validation, test


def _enough(classes: NDArray[Any]) -> None:
    """Refuse what cannot be divided by class."""
    values, counts = np.unique(classes, return_counts=True)
    if counts.min() < 3:
        rare = int(counts.argmin())
        raise ValueError(
            f"class {values[rare]!s} has {counts[rare]} of {len(classes)} samples, and each class "
            f"needs at least 3, one for each part"
        )
    if len(classes) // 5 < len(values):
        raise ValueError(
            f"{len(classes)} samples are too few for {len(values)} classes: validation and test, a "
            f"fifth each, could not have one of every class"
        )


def _by_group(
    groups: NDArray[Any], classes: NDArray[Any] | None
) -> tuple[Indices, Indices, Indices]:
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 3:
        raise ValueError(f"three parts need at least 3 groups; there are {len(names)}")
    # Thousands of groups taken at random hold about the same classes, and balancing takes minutes.
    if classes is not None and 5 <= len(names) <= 2000:
        return _by_group_and_class(members, classes)
    parts = _at_random(np.arange(len(names)), None)
    train, validation, test = (np.flatnonzero(np.isin(members, part)) for part in parts)
    return train, validation, test


def _by_group_and_class(
    groups: NDArray[Any], classes: NDArray[Any]
) -> tuple[Indices, Indices, Indices]:
    from sklearn.model_selection import StratifiedGroupKFold

    _, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    # Classes too rare to be balanced stand in for the commonest, and go where their group goes.
    codes = np.where(counts[codes] < 5, counts.argmax(), codes)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=SPLIT_SEED)
    fifths = [held for _, held in folds.split(codes, codes, groups)]
    # One huge group can fill most of the samples, and those are for training.
    test, validation, *rest = sorted(fifths, key=len)
    if not len(test):
        raise ValueError("one group has so many of the samples that a part would be left with none")
    return np.sort(np.concatenate(rest)), validation, test


def _by_time(order: NDArray[Any]) -> tuple[Indices, Indices, Indices]:
    samples = np.argsort(order, kind="stable")
    times, n = order[samples], len(order)
    first, second = (int(np.searchsorted(times, times[n * k // 5])) for k in (3, 4))
    if not 0 < first < second:
        raise ValueError(
            f"{n} samples have {len(np.unique(times))} different times, too few or too unequal to "
            f"be cut into earlier and later parts"
        )
    return samples[:first], samples[first:second], samples[second:]
