"""From what a person has to the parts of a data set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from thalweg.tasks.arrays import batch, read_npz
from thalweg.tasks.divide import divide
from thalweg.tasks.samples import of_dataset, of_loader
from thalweg.tasks.split import Batch, Split, TaskError

__all__ = ["DEFAULT_BATCH", "Parts", "nonfinite_taken", "parts"]

DEFAULT_BATCH = 32


@dataclass(frozen=True)
class Parts:
    """A data set in its three parts.

    Attributes:
        train, validation, test: see `thalweg.tasks.Task`.
        batch_size: of the loader that was given, or None.
        notes: what was done to the data, a sentence each.
    """

    train: Split
    validation: Split
    test: Split
    batch_size: int | None = None
    notes: tuple[str, ...] = ()


def parts(train: Any, validation: Any, test: Any) -> Parts:
    """Tensors of what `thalweg.tasks.Task` takes as data.

    Args:
        train: see there, as for the types of numbers `thalweg.tasks.arrays`. An ``.npz`` file has
            the targets as ``y``, the inputs as ``x``, or, of a model with several, as arrays of
            any other names, which the model takes by name.
        validation: likewise; None for a fifth of the samples for training.
        test: likewise.

    Raises:
        TaskError: naming the part and what stands against it.
    """
    notes: list[str] = []
    split, batch_size = _part("train", train, notes)
    asked = {"validation": validation, "test": test}
    given = {n: _part(n, one, notes)[0] for n, one in asked.items() if one is not None}
    missing = [name for name in asked if name not in given]
    if missing:
        split, taken = _take(split, missing, notes)
        given |= taken
    for name, one in given.items():
        _alike(split, name, one)
    return Parts(split, given["validation"], given["test"], batch_size, tuple(dict.fromkeys(notes)))


def _part(part: str, given: Any, notes: list[str]) -> tuple[Split, int | None]:
    """One part as tensors, and the batch size of a loader."""
    batch_size = None
    if isinstance(given, Split):
        x, y = given.x, given.y
    elif isinstance(given, str | PathLike | np.lib.npyio.NpzFile):
        x, y = _of_arrays(part, read_npz(part, given))
    elif isinstance(given, DataLoader):
        x, y, batch_size = of_loader(part, given, notes)
    elif _is_dataset(given):
        x, y = of_dataset(part, given, notes)
    elif isinstance(given, tuple | list) and len(given) == 2:
        x, y = given
    else:
        raise TaskError(
            part,
            f"must be (x, y) of tensors or arrays, a Dataset, a DataLoader or the path of an .npz "
            f"file, got {_what(given)}",
        )
    targets = batch(part, "targets", y, None, notes)
    count = len(tree_leaves(targets)[0])
    split = _paired(part, batch(part, "inputs", x, count, notes), targets)
    _all_finite(part, split)
    return split, batch_size


def _is_dataset(given: Any) -> bool:
    """Whether samples are asked for by number; a list of pairs is as good as a ``Dataset``."""
    if isinstance(given, Dataset):
        return True
    if isinstance(given, list):
        return bool(given) and all(isinstance(s, tuple) for s in given)
    arrays = isinstance(given, tuple | Mapping | Tensor | np.ndarray)
    return not arrays and hasattr(given, "__getitem__") and hasattr(given, "__len__")


def _of_arrays(part: str, arrays: dict[str, Any]) -> tuple[Any, Any]:
    names = ", ".join(arrays) or "none"
    if "y" not in arrays or len(arrays) < 2:
        raise TaskError(
            part,
            f"the file needs arrays x, or several inputs by name, and y; it has {names}",
        )
    inputs = {name: array for name, array in arrays.items() if name != "y"}
    return inputs["x"] if set(inputs) == {"x"} else inputs, arrays["y"]


def _what(given: Any) -> str:
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}"
    shape = getattr(given, "shape", None)
    return type(given).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def _paired(part: str, x: Batch, y: Batch) -> Split:
    counts = [[len(t) for t in tree_leaves(side)] for side in (x, y)]
    if not any(map(any, counts)):
        raise TaskError(part, "has no samples")
    if len({*counts[0], *counts[1]}) != 1:
        inputs, targets = (" and ".join(map(str, dict.fromkeys(c))) for c in counts)
        raise TaskError(
            part, f"has {inputs} inputs and {targets} targets; each sample needs one of both"
        )
    return Split(x, y)


# Whether data may have NaN or infinite values: only for whoever looks for them.
_TAKEN: ContextVar[bool] = ContextVar("nonfinite_taken", default=False)


@contextmanager
def nonfinite_taken() -> Iterator[None]:
    """Let tasks that are made inside have NaN and infinite values, which else are refused."""
    before = _TAKEN.set(True)
    try:
        yield
    finally:
        _TAKEN.reset(before)


def _all_finite(part: str, split: Split) -> None:
    if _TAKEN.get():
        return
    for role, side in (("inputs", split.x), ("targets", split.y)):
        for tensor in tree_leaves(side):
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            # A sum is finite if all terms are and it does not overflow, and takes no memory.
            if bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()):
                continue
            bad = (~tensor.isfinite()).flatten(1).any(1) if tensor.ndim > 1 else ~tensor.isfinite()
            raise TaskError(
                part,
                f"{int(bad.sum())} of {len(bad)} samples have {role} that are NaN or infinite, the "
                f"first at index {int(bad.nonzero()[0])}; fill these in or leave the samples out",
            )


def _take(split: Split, missing: list[str], notes: list[str]) -> tuple[Split, dict[str, Split]]:
    """Samples for the missing parts, a fifth each, out of those for training."""
    n, classes, why = len(split), None, ""
    if isinstance(split.y, Tensor) and split.y.ndim == 1 and not split.y.is_floating_point():
        classes = split.y.numpy()
    try:
        train, validation, test = divide(n, classes=classes)
    except ValueError as error:
        if classes is None or n < 3:
            raise TaskError(missing[0], f"cannot be taken from train, as {error}") from None
        train, validation, test = divide(n)
        why = f", not by class, as {error}"
    taken = {"validation": validation, "test": test}
    kept = np.concatenate([train, *(i for name, i in taken.items() if name not in missing)])
    by_class = " by class" if classes is not None and not why else ""
    each = " each" if len(missing) > 1 else ""
    notes.append(
        f"{' and '.join(missing)}: a fifth of the samples for training{each}, drawn at "
        f"random{by_class}{why}"
    )

    def some(index: Any) -> Split:
        return Split(*split[torch.as_tensor(np.asarray(index), dtype=torch.int64)])

    return some(kept), {name: some(taken[name]) for name in missing}


def _alike(train: Split, part: str, split: Split) -> None:
    """Refuse parts that differ in what one model could not take."""
    for role in ("x", "y"):
        ours, theirs = getattr(train, role), getattr(split, role)
        what = "inputs" if role == "x" else "targets"
        if tree_flatten(ours)[1] != tree_flatten(theirs)[1]:
            raise TaskError(
                part, f"{what} are {_kinds(theirs)}, and those of train are {_kinds(ours)}"
            )
        for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            if a.dtype != b.dtype or a.ndim != b.ndim:
                raise TaskError(
                    part, f"{what} are {_kinds(theirs)}, and those of train are {_kinds(ours)}"
                )


def _kinds(given: Batch) -> str:
    def of(t: Tensor) -> str:
        return f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"

    return str(tree_map(of, given)).replace("'", "")
