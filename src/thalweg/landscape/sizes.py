"""Sizes and distributions of many tensors, taken on the device and read off it together."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.landscape.activations import SATURATED

__all__ = ["QUANTILES", "SAMPLE", "VALUES", "Block", "Seen", "dead", "digest", "measure"]

Array: TypeAlias = NDArray[np.float64]
Active: TypeAlias = NDArray[np.bool_]

SAMPLE = 1024  # values of a tensor whose distribution is looked at; all of them if there are fewer
SEEN = 500  # samples from which on a unit that was silent for all of them is called dead
TINY = 1e-12  # a norm of float32 from which down its squares vanish

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
_SHAPE = ("mean", "std", *QUANTILES, "zeros", "saturated")
VALUES = ("count", "rms", *_SHAPE, "silent")


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a tensor.

    Attributes:
        layer: whose it is.
        what: it is.
        count: of values.
        sample: of values, all of them or `SAMPLE`; none of weights.
        norm: of all values, ``()``, where the sample has not all of them.
        peak: the largest value of each unit, ``(units,)``, where units can fall silent.
        batch: samples that these units saw.
    """

    layer: str
    what: str
    count: int
    sample: Tensor | None
    norm: Tensor | None
    peak: Tensor | None = None
    batch: int = 0


@dataclass(frozen=True, eq=False)
class Block:
    """What a few steps come to.

    Attributes:
        keys: ``(step, layer, what)`` of each row of values.
        values: ``(keys, VALUES)``.
        active: for each layer with units its ``(step, samples, active)``, which units any sample
            made positive.
        bad: of the first tensor that was not finite, its step and what was seen.
    """

    keys: list[tuple[int, str, str]]
    values: Array
    active: Mapping[str, list[tuple[int, int, Active]]]
    bad: tuple[int, Seen] | None


def measure(
    layer: str,
    what: str,
    tensor: Tensor,
    places: dict[tuple[int, torch.device], Tensor],
    units: int | None = None,
) -> Seen:
    """Take a tensor's norm and a sample of its values; nothing waits for the device.

    Args:
        layer: whose it is.
        what: it is.
        tensor: real, dense, not empty.
        places: where samples are taken, kept between calls.
        units: the dimension along which units lie, if these can fall silent.
    """
    values, count = tensor.detach(), tensor.numel()
    norm = peak = None
    if count > SAMPLE:
        place = (count, values.device)
        if place not in places:
            places[place] = _spread(*place)
        sample = torch.take(values, places[place])
        half = values.dtype in (torch.float16, torch.bfloat16)
        norm = torch.linalg.vector_norm(values, dtype=torch.float32 if half else None)
    else:
        sample = values.reshape(-1).clone()  # what comes next may write to it
    if units is not None:
        peak = values.amax([d for d in range(values.ndim) if d != units])
    return Seen(layer, what, count, sample, norm, peak, 0 if peak is None else len(values))


def _spread(count: int, device: torch.device) -> Tensor:
    """`SAMPLE` different places of a tensor, one at random from each of as many equal parts.

    At regular intervals they could all be of one unit, or of the edge of images.
    """
    draw = torch.rand(SAMPLE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ((torch.arange(SAMPLE) + draw) * (count / SAMPLE)).long()
    return found.clamp_(max=count - 1).to(device)


def digest(steps: Sequence[tuple[int, Sequence[Seen]]], kinds: Mapping[str, str]) -> Block:
    """Read what was seen off the device, and summarise it.

    Args:
        steps: each step's, in the order of time. What is of one layer and kind is taken together.
        kinds: of layers.
    """
    every = [(step, one) for step, seen in steps for one in seen]
    keys: dict[tuple[int, str, str], int] = {}
    row = np.array([keys.setdefault((s, o.layer, o.what), len(keys)) for s, o in every])
    count = np.array([one.count for _, one in every])
    samples, values = _fetched([one.sample for _, one in every])
    squares = _squares([one.norm for _, one in every], count, samples, values)
    bad = next((every[i] for i in np.flatnonzero(~np.isfinite(squares))), None)
    with np.errstate(invalid="ignore"):
        total = np.bincount(row, squares)
    counts = np.bincount(row, count)

    together: list[list[Array]] = [[] for _ in keys]
    for i, sample in samples.items():
        together[row[i]].append(values[sample])
    of = [SATURATED.get(kinds[k]) if what == "activation" else None for _, k, what in keys]
    shapes = _distributions(together, of)

    silent = np.full(len(keys), np.nan)
    active: dict[str, list[tuple[int, int, Active]]] = defaultdict(list)
    units, peaks = _fetched([one.peak for _, one in every])
    for i, place in units.items():
        step, one = every[i]
        if np.isnan(peaks[place]).any():
            continue
        mine, batch, positive = active[one.layer], one.batch, peaks[place] > 0
        if mine and mine[-1][0] == step and len(mine[-1][2]) == len(positive):
            _, others, before = mine.pop()
            batch, positive = batch + others, positive | before
        mine.append((step, batch, positive))
        silent[row[i]] = 1 - positive.mean()
    found = np.column_stack([counts, np.sqrt(total / counts), shapes, silent])
    return Block(list(keys), found, active, bad)


def _fetched(tensors: Sequence[Tensor | None]) -> tuple[dict[int, slice], NDArray[Any]]:
    """Where the values of each tensor ``(values,)`` are, and these, by one copy from the device."""
    some = {i: t for i, t in enumerate(tensors) if t is not None}
    if not some:
        return {}, np.empty(0, np.float32)
    home = next(iter(some.values())).device
    joined = torch.cat([t if t.device == home else t.to(home) for t in some.values()])
    halves = joined.dtype in (torch.float16, torch.bfloat16)
    ends = np.cumsum([len(t) for t in some.values()]).tolist()
    places = dict(zip(some, map(slice, [0, *ends], ends), strict=True))
    return places, (joined.float() if halves else joined).cpu().numpy()


def _squares(
    norms: Sequence[Tensor | None],
    count: NDArray[np.int64],
    samples: Mapping[int, slice],
    values: NDArray[Any],
) -> Array:
    """Sum of the squares of each tensor; not finite if it has a value that is not."""
    found = np.full(len(norms), np.nan)
    if samples:
        starts = [s.start for s in samples.values()]
        lengths = np.diff([*starts, len(values)])
        index = list(samples)
        wide = values.astype(np.float64)
        with np.errstate(invalid="ignore"):
            found[index] = np.add.reduceat(wide * wide, starts) * (count[index] / lengths)
    whole, sizes = _fetched([None if n is None else n.reshape(1) for n in norms])
    index = list(whole)
    # In float32 the squares of what is so small are 0, and the sample knows better.
    known = (sizes < TINY) & np.isfinite(found[index])
    found[index] = np.where(known, found[index], sizes.astype(np.float64) ** 2)
    return found


def _distributions(
    samples: Sequence[Sequence[Array]], bounds: Sequence[tuple[float, float] | None]
) -> Array:
    """`_SHAPE` of each row's values, ``(rows, 9)``; rows of equally many are computed together."""
    found = np.full((len(samples), len(_SHAPE)), np.nan)
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, pieces in enumerate(samples):
        if pieces:
            by_length[sum(map(len, pieces))].append(i)
    at = np.array(list(QUANTILES.values()))
    for length, rows in by_length.items():
        table = np.stack([np.concatenate(p) if len(p := samples[i]) > 1 else p[0] for i in rows])
        table.sort(axis=1)
        zeros = np.count_nonzero(table == 0, axis=1) / length
        bounded = [j for j, i in enumerate(rows) if bounds[i] is not None]
        saturated = np.full(len(rows), np.nan)
        if bounded:
            low, high = np.array([bounds[rows[j]] for j in bounded], table.dtype).T[..., None]
            some = table[bounded]
            saturated[bounded] = np.count_nonzero((some <= low) | (some >= high), axis=1) / length
        wide = table.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinities and NaN make NaN
            mean = wide.sum(1) / length
            below = (at * (length - 1)).astype(int)
            above, part = np.minimum(below + 1, length - 1), at * (length - 1) - below
            quantiles = wide[:, below] * (1 - part) + wide[:, above] * part
            wide -= mean[:, None]
            std = np.sqrt(np.einsum("ij,ij->i", wide, wide) / length)
        found[rows] = np.column_stack([mean, std, quantiles, zeros, saturated])
    return found


def dead(seen: Sequence[tuple[int, int, Active]]) -> Iterator[tuple[int, float]]:
    """Share of units that no sample made active from a step on.

    Args:
        seen: ``(step, samples, active)`` of one layer, in the order of time.

    Yields:
        ``(step, share)``, the last first, where at least `SEEN` samples follow to tell by: a unit
        that is active for one sample in a hundred is missed by all of these once in 150 times.
    """
    if len({len(active) for _, _, active in seen}) != 1:
        return
    alive = np.zeros(len(seen[0][2]), dtype=bool)
    samples = 0
    for step, batch, active in reversed(seen):
        alive = alive | active
        samples += batch
        if samples >= SEEN:
            yield step, 1 - float(alive.mean())
