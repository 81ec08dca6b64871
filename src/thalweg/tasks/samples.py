"""All samples of a torch ``Dataset`` or ``DataLoader``, as tensors."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from thalweg.tasks.arrays import as_tensor, room_for
from thalweg.tasks.blame import first_line, place
from thalweg.tasks.split import TaskError

__all__ = ["DRAWN", "of_dataset", "of_loader"]

# Of a data set that does not say how many samples it has, at most so many are taken.
LONGEST = 1_000_000

# Random numbers drawn while samples are read come from this seed, so that they are the same again.
DRAWN = 0

# So many samples are asked for twice.
ASKED_TWICE = 8


def of_dataset(part: str, dataset: Any, notes: list[str]) -> tuple[Any, Any]:
    """Inputs and targets of all samples of a data set, which must have equal shapes.

    Args:
        part: train, validation or test.
        dataset: map-style, or an ``IterableDataset`` that ends. Samples are tuples, of which the
            last is the target.
        notes: is added to.

    Raises:
        TaskError: naming the part, and the sample at fault.
    """
    found = _tensors_of(dataset)
    if found is not None:
        return found
    if isinstance(dataset, IterableDataset):
        samples = _read(part, dataset, 1)
        return _pair(part, _stacked(part, iter(samples), len(samples)))
    indices = range(_length(part, dataset))
    with _drawing():
        whole = _stacked(part, (_sample(part, dataset, i) for i in indices), len(indices))
        pair = _pair(part, whole)
        _ask_again(part, dataset, indices, lambda i: _row(whole, i), notes)
    return pair


def of_loader(part: str, loader: DataLoader[Any], notes: list[str]) -> tuple[Any, Any, int | None]:
    """Inputs and targets of all samples that a loader draws from, and its batch size.

    The collate function is applied once, to all samples: so that what it pads has one length.
    The order and the workers of the loader play no part.

    Raises:
        TaskError: naming the part, and the sample at fault.
    """
    dataset, size = loader.dataset, _batch_size(loader)
    if isinstance(dataset, IterableDataset):
        if loader.batch_size is None:
            return _joined(part, loader)
        if loader.collate_fn is default_collate:
            return *of_dataset(part, dataset, notes), size
        samples = _read(part, dataset, 2)
        return *_pair(part, _collated(part, loader.collate_fn, samples)), size
    if loader.batch_sampler is None:
        return _joined(part, loader)
    n = _length(part, dataset)
    indices = _drawn_from(part, loader, n, notes)
    if not len(indices):
        raise TaskError(part, "the loader has no samples")
    if loader.collate_fn is default_collate:
        kept: Any = dataset if len(indices) == n else Subset(dataset, list(indices))
        return *of_dataset(part, kept, notes), size
    with _drawing():
        first = _sample(part, dataset, indices[0])
        room_for(part, 2 * _bytes(first) * len(indices))
        samples = [_sample(part, dataset, i) for i in indices]
        whole = _pair(part, _collated(part, loader.collate_fn, samples))
        _ask_again(part, dataset, indices, lambda i: samples[i], notes)
    return *whole, size


def _tensors_of(dataset: Any) -> tuple[Any, Any] | None:
    """Those of a ``TensorDataset``, or of some samples of one, as they are."""
    if type(dataset) is Subset:
        whole = _tensors_of(dataset.dataset)
        if whole is None:
            return None
        index = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        x, y = tree_map(lambda t: t[index], whole)
        return x, y
    if type(dataset) is TensorDataset and len(dataset.tensors) > 1:
        *x, y = dataset.tensors
        return x[0] if len(x) == 1 else tuple(x), y
    return None


def _length(part: str, dataset: Any) -> int:
    try:
        n = len(dataset)
    except (TypeError, NotImplementedError):
        raise TaskError(
            part, f"{type(dataset).__name__} does not say how many samples it has; give it __len__"
        ) from None
    if n == 0:
        raise TaskError(part, f"{type(dataset).__name__} has no samples")
    return n


def _sample(part: str, dataset: Any, i: int) -> Any:
    try:
        return dataset[i]
    except Exception as error:
        raise TaskError(
            part, f"sample {i} of {type(dataset).__name__} raises {first_line(error)}{_at(error)}"
        ) from error


def _at(error: BaseException) -> str:
    where = place(error)
    return f" ({where})" if where else ""


def _read(part: str, dataset: Any, copies: int) -> list[Any]:
    """The samples of an iterable data set."""
    samples: list[Any] = []
    with _drawing():
        try:
            for sample in dataset:
                samples.append(sample)
                if len(samples) > LONGEST:
                    break
                if len(samples).bit_count() == 1:  # at each power of two, as many as that again
                    room_for(part, copies * _bytes(sample) * len(samples))
        except TaskError:
            raise
        except Exception as error:
            raise TaskError(
                part,
                f"{type(dataset).__name__} raises {first_line(error)} after {len(samples)} "
                f"samples{_at(error)}",
            ) from error
    if len(samples) > LONGEST:
        raise TaskError(
            part,
            f"{type(dataset).__name__} gave more than {LONGEST:,} samples and has not ended; a "
            f"study needs a bounded set: take some with itertools.islice",
        )
    if not samples:
        raise TaskError(part, f"{type(dataset).__name__} has no samples")
    return samples


def _pair(part: str, whole: Any) -> tuple[Any, Any]:
    """Inputs and targets of a sample or a batch: of ``(a, b, y)`` they are ``(a, b)`` and y."""
    if isinstance(whole, Mapping):
        keys = ", ".join(map(str, whole))
        raise TaskError(
            part,
            f"samples are dictionaries with {keys}; return (inputs, target) instead, where inputs "
            f"may be a dictionary of the model's arguments by name",
        )
    if not isinstance(whole, tuple | list) or len(whole) < 2:
        raise TaskError(
            part,
            f"samples are a {type(whole).__name__} and not (input, target); return both",
        )
    *x, y = whole
    return x[0] if len(x) == 1 else tuple(x), y


def _leaf(part: str, i: int, value: Any) -> Tensor:
    """A number or array of a sample."""
    if isinstance(value, bool | int | float | np.generic | np.ndarray | Tensor):
        # A Python number is a double by nature, not by choice.
        return as_tensor(part, f"the values of sample {i}", value)
    what = type(value)
    raise TaskError(
        part,
        f"sample {i} holds a {what.__module__}.{what.__qualname__}, where tensors, arrays or "
        f"numbers are needed; convert it in __getitem__, or in the collate_fn of a DataLoader",
    )


def _stacked(part: str, samples: Iterator[Any], n: int) -> Any:
    """All samples as one, each of its tensors ``(samples, *)``; written where they stay."""
    first = next(samples)
    _pair(part, first)
    leaves, structure = tree_flatten(first)
    tensors = [_leaf(part, 0, leaf) for leaf in leaves]
    room_for(part, n * sum(t.numel() * t.element_size() for t in tensors))
    whole = [torch.empty((n, *t.shape), dtype=t.dtype) for t in tensors]
    for store, t in zip(whole, tensors, strict=True):
        store[0] = t
    for i, sample in enumerate(samples, start=1):
        leaves, found = tree_flatten(sample)
        if found != structure:
            raise TaskError(part, f"sample {i} is not built like the first: {found}")
        for store, leaf in zip(whole, leaves, strict=True):
            t = _leaf(part, i, leaf)
            if t.shape != store.shape[1:]:
                raise TaskError(
                    part,
                    f"sample {i} has a tensor of shape {tuple(t.shape)} where the first has "
                    f"{tuple(store.shape[1:])}; give a DataLoader whose collate_fn pads them",
                )
            store[i] = t
    return tree_unflatten(whole, structure)


def _row(whole: Any, i: int) -> Any:
    return tree_map(lambda t: t[i], whole)


def _collated(part: str, collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    try:
        return collate(samples)
    except Exception as error:
        raise TaskError(
            part,
            f"collate_fn raises {first_line(error)} for all {len(samples)} samples "
            f"at once{_at(error)}",
        ) from error


def _joined(part: str, loader: DataLoader[Any]) -> tuple[Any, Any, int | None]:
    """What a loader without a batch size gives: batches made by the data set, or samples."""
    with _drawing():
        items: list[Any] = []
        for item in loader:
            items.append(_pair(part, item))
            if len(items) > LONGEST:
                raise TaskError(part, f"the loader gave more than {LONGEST:,} batches; bound it")
            if len(items).bit_count() == 1:
                room_for(part, 2 * _bytes(item) * len(items))
    if not items:
        raise TaskError(part, "the loader has no samples")
    structure = tree_flatten(items[0])[1]
    rows = [[_leaf(part, i, leaf) for leaf in tree_leaves(item)] for i, item in enumerate(items)]
    single = any(t.ndim == 0 for t in rows[0])
    join = torch.stack if single else torch.cat
    try:
        joined = [join(column) for column in zip(*rows, strict=True)]
    except (RuntimeError, ValueError) as error:
        raise TaskError(
            part, f"the loader's batches do not fit together ({str(error).splitlines()[0]})"
        ) from None
    x, y = tree_unflatten(joined, structure)
    return x, y, None if single else len(rows[0][-1])


def _batch_size(loader: DataLoader[Any]) -> int | None:
    if loader.batch_size is not None:
        return int(loader.batch_size)
    found = getattr(loader.batch_sampler, "batch_size", None)
    return found if isinstance(found, int) else None


def _drawn_from(part: str, loader: DataLoader[Any], n: int, notes: list[str]) -> Sequence[int]:
    """The indices of a loader's samples, each once."""
    batches = loader.batch_sampler
    sampler: Any = loader.sampler
    if batches is not None and type(batches) is not BatchSampler:
        with _drawing():
            return sorted({int(i) for batch in batches for i in batch})
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return sorted({int(i) for i in sampler.indices})
    name = type(sampler).__name__
    if name in ("SequentialSampler", "RandomSampler"):
        return range(n)
    if name in ("WeightedRandomSampler", "DistributedSampler"):
        notes.append(f"{part}: the loader's {name} is left out; every sample is seen once an epoch")
        return range(n)
    with _drawing():
        return sorted({int(i) for i in sampler})


def _ask_again(
    part: str,
    dataset: Any,
    indices: Sequence[int],
    kept: Callable[[int], Any],
    notes: list[str],
) -> None:
    """Note whether a data set gives another sample each time, an augmentation say."""
    step = -(-len(indices) // ASKED_TWICE)
    for i in range(0, len(indices), step):
        again, before = (tree_leaves(s) for s in (_sample(part, dataset, indices[i]), kept(i)))
        if not all(_same(a, b) for a, b in zip(again, before, strict=True)):
            notes.append(
                f"{part}: its data set gives another sample each time it is asked, as random "
                f"augmentations do; one draw of each sample is used in every epoch"
            )
            return


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, bool | int | float | np.generic | np.ndarray | Tensor):
        return True
    a, b = (torch.as_tensor(v) for v in (a, b))
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=1e-5, atol=1e-8, equal_nan=True
    )


def _bytes(sample: Any) -> int:
    """Of its tensors and arrays."""
    return sum(8 if not hasattr(t, "nbytes") else int(t.nbytes) for t in tree_leaves(sample))


@contextmanager
def _drawing() -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from one seed, for as long as this lasts."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(DRAWN)
            random.seed(DRAWN)
            np.random.seed(DRAWN)  # noqa: NPY002
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
