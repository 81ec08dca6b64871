"""Tensors of arrays, lists and ``.npz`` files.

Which type a number gets, for inputs and targets:

- floating point: float32, as models have it; tensors keep their own type, which was chosen.
- integers and truth values: int64, class numbers and tokens.
- but uint8 inputs, images, are float32 of the same values: 0 to 255, as scaling is the person's.
- and truth values as the only input are float32; next to others they are masks, and stay.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from thalweg.tasks.memory import available_memory, shown
from thalweg.tasks.split import Batch, TaskError

__all__ = ["Role", "as_tensor", "batch", "read_npz", "room_for", "typed"]

Role = Literal["inputs", "targets"]

# From here on a float32 skips whole numbers.
EXACT = 1 << 24


def batch(part: str, role: Role, given: Any, samples: int | None, notes: list[str]) -> Batch:
    """Tensors of inputs or targets.

    Args:
        part: train, validation or test.
        role: which of both.
        given: one array, or a tuple or dictionary of several. A list is one array, unless it holds
            arrays of as many samples each as there are targets.
        samples: how many targets there are, if known.
        notes: is added to.

    Raises:
        TaskError: naming the part, for what is no array of numbers.
    """
    several = isinstance(given, list) and _are_columns(given, samples)
    if isinstance(given, tuple) or several:
        parts = {str(i): value for i, value in enumerate(given)}
    elif isinstance(given, Mapping):
        parts = {str(name): value for name, value in given.items()}
    else:
        return typed(part, role, as_tensor(part, role, given), True, notes)
    found = {
        name: batch(part, role, value, samples, notes)
        if isinstance(value, tuple | Mapping)
        else typed(
            part, f"{role} {name!r}", as_tensor(part, f"{role} {name!r}", value), False, notes
        )
        for name, value in parts.items()
    }
    if not found:
        raise TaskError(part, f"has no {role}")
    return dict(found) if isinstance(given, Mapping) else tuple(found.values())


def _are_columns(given: list[Any], samples: int | None) -> bool:
    """Whether a list holds the inputs of a model with several, and not samples."""
    arrays = all(isinstance(g, np.ndarray | Tensor) and g.ndim > 0 for g in given)
    return bool(given) and arrays and len(given) != samples and {len(g) for g in given} == {samples}


def as_tensor(part: str, role: str, given: Any) -> Tensor:
    """One array as a tensor on the CPU: ``(samples, *)``.

    Floating-point numbers are float32, those of tensors as they were.

    Raises:
        TaskError: naming the part, for what is no array of numbers.
    """
    if isinstance(given, Tensor):
        if given.layout != torch.strided or given.is_nested:
            raise TaskError(part, f"{role} are a sparse or nested tensor; give .to_dense() of it")
        return given.detach().cpu()
    if type(given).__module__.startswith("scipy.sparse"):
        raise TaskError(
            part, f"{role} are a sparse matrix of SciPy; give .toarray() of it, if it fits memory"
        )
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TaskError(
            part,
            f"{role} are a {type(given).__name__} that makes no array, as its rows differ in "
            f"length or hold no numbers ({str(error).splitlines()[0]}); pad or encode them",
        ) from None
    return _from_numpy(part, role, array)


def _from_numpy(part: str, role: str, array: Any) -> Tensor:
    kind = array.dtype.kind
    if kind in "OUSV":
        what = {"O": "Python objects", "V": "records"}.get(kind, "words")
        raise TaskError(
            part,
            f"{role} are {what} (dtype {array.dtype}), where numbers are needed; encode words as "
            f"class numbers, and give columns of different kinds as a table",
        )
    if kind in "mMc":
        raise TaskError(part, f"{role} are of dtype {array.dtype}; give real numbers")
    target = np.dtype("float32" if kind == "f" else "bool" if kind == "b" else "int64")
    if array.dtype == np.uint8:  # whose meaning depends on the role
        target = array.dtype
    room_for(part, array.size * target.itemsize if array.dtype != target else 0)
    if kind == "u" and array.itemsize == 8 and array.size and array.max() > np.iinfo("int64").max:
        raise TaskError(part, f"{role} go up to {array.max()}, more than int64 holds")
    # Read-only arrays and those that run backwards are no memory for a tensor.
    with np.errstate(over="ignore"):  # what overflows is infinite, which is refused
        own = np.require(array, target, ["C", "W"])
    return torch.from_numpy(own)


def typed(part: str, role: str, tensor: Tensor, alone: bool, notes: list[str]) -> Tensor:
    """A tensor in the type of its role, see the module.

    Args:
        part: train, validation or test.
        role: begins with inputs or targets.
        tensor: ``(samples, *)``.
        alone: whether it is all there is of its role.
        notes: is added to.
    """
    if tensor.ndim == 0:
        raise TaskError(part, f"{role} are a single number; the first dimension is that of samples")
    if tensor.is_floating_point():
        _note_large(part, role, tensor, notes)
        return tensor
    if tensor.is_complex():
        return tensor
    inputs = role.startswith("inputs")
    if inputs and tensor.dtype == torch.uint8:
        notes.append(
            f"{part}: {role} of uint8 are float32 of the same values; scaling them, to 0 to 1 say, "
            f"is left to you"
        )
        return tensor.float()
    if inputs and tensor.dtype == torch.bool:
        return tensor.float() if alone else tensor
    return tensor.long()


def _note_large(part: str, role: str, tensor: Tensor, notes: list[str]) -> None:
    if tensor.dtype != torch.float32 or not tensor.numel():
        return
    largest = float(tensor.abs().max())
    if np.isfinite(largest) and largest >= EXACT:
        notes.append(
            f"{part}: {role} go up to {largest:.4g}, where float32 keeps 7 digits; subtract an "
            f"offset or scale them if the last digits matter"
        )


def room_for(part: str, needed: int) -> None:
    """Refuse what does not fit memory.

    Raises:
        TaskError: naming the part and both sizes.
    """
    available = available_memory() if needed > 1 << 20 else needed
    if needed > available:
        raise TaskError(
            part,
            f"needs {shown(needed)} of memory and {shown(available)} are left; give fewer samples, "
            f"or smaller ones",
        )


def read_npz(part: str, given: Any) -> dict[str, Any]:
    """The arrays of an ``.npz`` file by name, read if they fit memory.

    Args:
        part: train, validation or test; or task.
        given: its path, or what `numpy.load` makes of it.

    Raises:
        TaskError: naming the file, if it is missing, broken or holds pickled objects.
    """
    opened = isinstance(given, np.lib.npyio.NpzFile)
    path = getattr(given.fid, "name", "the file") if opened else Path(given)
    if not opened and not Path(given).is_file():
        raise TaskError(part, f"there is no file {given}")
    try:
        if not opened:
            _look_into(part, Path(given))
        if opened:  # and closed by whom it belongs to
            return {name: given[name] for name in given.files}
        with np.load(given, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except TaskError:
        raise
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise TaskError(part, f"{path} cannot be read ({error})") from None
        raise _pickled(part, path, "an array") from None
    except (OSError, BadZipFile, EOFError, KeyError, AttributeError) as error:
        raise TaskError(
            part,
            f"{path} is no .npz file that can be read ({type(error).__name__}: {error}); write it "
            f"anew by numpy.savez(path, x=x, y=y)",
        ) from None


def _look_into(part: str, path: Path) -> None:
    """Refuse what holds pickled objects, or does not fit memory, by the arrays' headers alone."""
    total = 0
    with ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.hasobject:
                raise _pickled(part, path, repr(entry.removesuffix(".npy")))
            total += int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room_for(part, total)


def _pickled(part: str, path: Any, which: str) -> TaskError:
    return TaskError(
        part,
        f"{path} holds Python objects in {which}, and unpickling them may run any code; save "
        f"arrays of numbers: numpy.savez(path, x=x.astype('float32'), y=y)",
    )
