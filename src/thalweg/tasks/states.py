"""Random states, which a measurement leaves as it finds them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["gpus", "random_states"]


def gpus() -> range:
    """Those in use, whose random state a seed changes and which keep memory."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if used else 0)


@contextmanager
def random_states() -> Iterator[None]:
    """Leave the global random states of torch, NumPy and Python as they are found."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=gpus()):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
