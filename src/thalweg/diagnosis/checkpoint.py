"""Weights that a training left in a file."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.diagnosis.arguments import DiagnosisError
from thalweg.tasks import Task

__all__ = ["ENDINGS", "is_checkpoint", "weights_of"]

ENDINGS = (".pt", ".pth", ".ckpt", ".bin")
KEYS = ("model", "state_dict", "model_state_dict", "weights")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")


def is_checkpoint(text: str) -> bool:
    """Whether what was typed is the path of a file with weights."""
    return Path(text).suffix.lower() in ENDINGS


def weights_of(path: str | Path, task: Task) -> dict[str, Tensor]:
    """The weights in a checkpoint, as the task's model has them.

    A state dictionary, or a dictionary that has one under ``model``, ``state_dict``,
    ``model_state_dict`` or ``weights``. Nothing but tensors and plain values is unpickled.

    Raises:
        DiagnosisError: for a file that is none, or whose weights are not those of the model.
    """
    state = _state(Path(path))
    with torch.random.fork_rng(devices=[]):
        own = task.model().state_dict()
    state = _named(state, own)
    missing, more = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or more:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"has {_some(more)}, which the model has not" if more else ""
        raise DiagnosisError(
            "task",
            f"{path} is of another model than that of the task {task.name!r}: it "
            f"{' and '.join(part for part in (lacks, has) if part)}; give the task that it was "
            f"trained on",
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise DiagnosisError(
                "task",
                f"{path} is of another model than that of the task {task.name!r}: its {name} has "
                f"the shape {tuple(tensor.shape)}, and the model's {tuple(own[name].shape)}",
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DiagnosisError(
                "task",
                f"{path}: {name} has NaN or infinite values, as the training had diverged before "
                f"it was saved; give an earlier checkpoint, or the task alone to see where it does",
            )
    return {name: tensor.to(own[name].dtype) for name, tensor in state.items()}


def _state(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file is TorchScript's, which is refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DiagnosisError("task", f"there is no file {path}") from None
    except OSError as error:
        raise DiagnosisError("task", f"cannot read {path} ({error.strerror})") from None
    except Exception:  # of what is no checkpoint any may come, and torch's advice is to unpickle it
        raise DiagnosisError(
            "task",
            f"{path} cannot be read as tensors and plain values alone: it is no checkpoint, or has "
            f"a whole model or other objects in it; save model.state_dict() by torch.save",
        ) from None
    for key in KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    ):
        raise DiagnosisError(
            "task",
            f"{path} has no state dictionary, neither itself nor under {', '.join(KEYS)}; save "
            f"model.state_dict() by torch.save",
        )
    return dict(found)


def _named(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names without what wrappers put before them all."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not state.keys() <= own.keys():
            state = {name.removeprefix(prefix): t for name, t in state.items()}
    return state


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
