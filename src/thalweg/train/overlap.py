"""Independent work at once."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from thalweg.tasks.states import gpus

__all__ = ["concurrently"]

T = TypeVar("T")


def concurrently(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls that do not need each other at once, and return their results in order.

    Each has a thread, as many at a time as there are processors for this process, which share the
    threads that torch may use; and a stream of its own on the current GPU, where one is in use,
    that begins when what was issued before is done and which what is issued after waits for.
    Whether gradients are recorded is as it is for the caller.

    It pays where calls spend their time in torch's operations, in NumPy's or waiting, which let
    other threads run meanwhile: several models evaluated, or the next data prepared beside a step
    on the device. What is written in Python takes turns.

    Args:
        calls: functions without arguments.

    Raises:
        BaseException: what the first of them, in order, that failed has raised, with its
            traceback; the others have ended by then.
    """
    if len(calls) < 2:
        return [call() for call in calls]
    workers = min(len(calls), _processors())
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    device = torch.cuda.current_device() if gpus() else None
    before = None if device is None else torch.cuda.current_stream(device)

    def made(call: Callable[[], T]) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            if before is None:
                return call()
            own = torch.cuda.Stream(device)
            with torch.cuda.device(device), torch.cuda.stream(own):
                own.wait_stream(before)
                result = call()
                own.synchronize()
                _lend(result, before)
                return result

    threads = torch.get_num_threads()
    # What a thread begins with; the count is the whole process' until all are done.
    torch.set_num_threads(max(1, threads // workers))
    try:
        with ThreadPoolExecutor(workers, "thalweg concurrently") as pool:
            futures = [pool.submit(made, call) for call in calls]
    finally:
        torch.set_num_threads(threads)
    return [future.result() for future in futures]


def _lend(result: Any, stream: Any) -> None:
    """Keep the memory of tensors on a GPU until another stream is done with it."""
    for t in tree_leaves(result):
        if isinstance(t, Tensor) and t.is_cuda:
            t.record_stream(stream)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
