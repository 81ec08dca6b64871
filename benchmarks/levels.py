"""A column of many categories: looked up, against the linear layer on its one-hot written out."""

import gc
import threading
from collections.abc import Callable
from time import sleep

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from benchmarks.measure import Row, alternate, shown
from thalweg.tasks.tables import table
from thalweg.tasks.tables.network import LookupLinear, network

ROWS, LEVELS, HIDDEN, BATCH = 20_000, 10_000, (64, 64), 256


def _frame() -> pd.DataFrame:
    r = np.random.default_rng(0)
    codes = np.concatenate([np.arange(LEVELS), r.integers(0, LEVELS, ROWS - LEVELS)])
    columns: dict[str, object] = {f"x{i}": r.normal(size=ROWS) for i in range(8)}
    return pd.DataFrame(columns | {"shop": [f"shop {c}" for c in codes], "y": codes % 2})


def _sparse(frame: pd.DataFrame) -> tuple[Tensor, ...]:
    few = frame.head(10)
    x = table(frame, "y", nominal=["shop"], validation=few, test=few).train.x
    assert isinstance(x, tuple)
    return x


def _dense(frame: pd.DataFrame) -> tuple[Tensor, ...]:
    """The same by scikit-learn's defaults and a dense array, as scripts have it."""
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [n for n in frame.columns if n.startswith("x")]
    encoder = make_column_transformer(
        (StandardScaler(), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["shop"]),
    )
    return (torch.as_tensor(encoder.fit_transform(frame), dtype=torch.float32),)


def _peak(call: Callable[[], object]) -> int:
    """Bytes that the process holds at most during a call, more than before."""
    gc.collect()
    process, seen, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.is_set():
            seen.append(process.memory_info().rss)
            sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    kept = call()
    done.set()
    watching.join()
    del kept
    return max(seen) - before


def _stepper(model: nn.Module, x: tuple[Tensor, ...], y: Tensor) -> Callable[[], object]:
    """Forward and backward of one batch, gradients of all weights included."""
    parameters = list(model.parameters())
    index = torch.arange(BATCH)

    def step() -> object:
        loss = nn.functional.cross_entropy(model(*(part[index] for part in x)), y[index])
        return torch.autograd.grad(loss, parameters)

    return step


def levels() -> list[Row]:
    """Peak memory of the encoding, and time of a step, with 10,000 levels."""
    frame = _frame()
    _sparse(frame.head(LEVELS))  # imports
    # In turns, as times are; the median of three.
    peaks = [(_peak(lambda: _sparse(frame)), _peak(lambda: _dense(frame))) for _ in range(3)]
    ours, theirs = (sorted(p)[1] for p in zip(*peaks, strict=True))
    codes, written = _sparse(frame), _dense(frame)
    y = torch.as_tensor(frame["y"].to_numpy(copy=True), dtype=torch.int64)
    looked_up = network(8, LEVELS, HIDDEN, 2)
    plain = network(8 + LEVELS, 0, HIDDEN, 2)
    first = next(m for m in looked_up.modules() if isinstance(m, LookupLinear))
    assert sum(p.numel() for p in first.parameters()) == (8 + LEVELS + 1) * HIDDEN[0]
    found = alternate(
        {"sparse": _stepper(looked_up, codes, y), "dense": _stepper(plain, written, y)}
    )
    what = f"{ROWS:,} rows, {LEVELS:,} levels"
    inputs, dense_inputs = _bytes(codes), _bytes(written)
    return [
        Row(f"{what}: encoding, peak", _megabytes(ours), _megabytes(theirs), theirs / ours),
        Row(
            f"{what}: inputs", _megabytes(inputs), _megabytes(dense_inputs), dense_inputs / inputs
        ),
        Row(
            f"batch of {BATCH}: forward and backward",
            shown(found["sparse"]), shown(found["dense"]), found["dense"] / found["sparse"],
        ),
    ]  # fmt: skip


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3g} MB"
