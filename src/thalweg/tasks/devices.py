"""Where a task may be trained."""

from typing import Any

import torch

from thalweg.errors import ArgumentError

__all__ = ["device_of", "wait"]


def device_of(device: Any, error: type[ArgumentError] = ArgumentError) -> torch.device:
    """A device that torch finds here, of what a person gives as its name."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise error("device", f"must be cpu or cuda, got {device!r}")
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise error("device", f"torch finds {count} GPUs here, got {device!r}")
        torch.cuda.init()  # type: ignore[no-untyped-call]
    return found


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
