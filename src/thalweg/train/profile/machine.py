"""What this machine reaches, measured on the spot."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from thalweg.tasks.devices import wait
from thalweg.tasks.memory import available_memory

__all__ = ["Machine", "free_memory", "measured"]

SMALLEST, LARGEST = 256, 8192  # rows of the matrices
LONG = 0.03  # seconds of a product, beyond which larger ones would tell nothing new
TURNS = 6  # of which the fastest counts
ARRAY = 64 * 2**20  # bytes of each of the triad's arrays; together beyond the caches of a core
SHARE = 1 / 16  # of the memory that is free, at most, for an array


@dataclass(frozen=True)
class Machine:
    """The best that this machine was seen to do.

    Attributes:
        flops: floating point operations a second, two for each multiplication and addition, of a
            product of square matrices; the best over sizes.
        bytes: bytes a second of memory, of the triad ``a = b + 3 c`` (McCalpin's STREAM) over
            arrays beyond the caches: two read, one written.
        rows: of the matrices that did best.
        dtype: of the matrices, as torch names it.
        threads: that torch had.
        seconds: that measuring took.
    """

    flops: float
    bytes: float
    rows: int
    dtype: str
    threads: int
    seconds: float


def measured(device: torch.device, dtype: torch.dtype) -> Machine:
    """Multiply matrices and stream through memory, for about a second.

    Args:
        device: where.
        dtype: of the matrices.
    """
    start = perf_counter()
    flops, rows = _product(device, dtype)
    return Machine(
        flops=flops,
        bytes=_triad(device),
        rows=rows,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        seconds=perf_counter() - start,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a device has left."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def _product(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    best, rows, n = 0.0, SMALLEST, SMALLEST
    while n <= LARGEST:
        # Of ones no product overflows, in whatever dtype; processors take as long for any numbers.
        left, right, out = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(3))
        took = _fastest(partial(torch.mm, left, right, out=out), device)
        if 2 * n**3 / took > best:
            best, rows = 2 * n**3 / took, n
        if took > LONG:
            break
        n *= 2
    return best, rows


def _triad(device: torch.device) -> float:
    most = ARRAY if device.type == "cpu" else 4 * ARRAY
    n = int(min(most, SHARE * free_memory(device))) // 4
    a, b, c = (torch.ones(n, device=device) for _ in range(3))
    return 12 * n / _fastest(partial(torch.add, b, c, alpha=3.0, out=a), device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls."""
    call()
    wait(device)
    found = []
    for _ in range(TURNS):
        start = perf_counter()
        call()
        wait(device)
        found.append(perf_counter() - start)
    return min(found)
