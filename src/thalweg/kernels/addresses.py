"""Where torch keeps its tensors, read afresh at every step, thousands at a time.

Between two steps anything may have moved: a gradient is made anew, ``p.data`` replaced, a module
cast. Asking every tensor from Python costs more than the step itself, so compiled code asks torch's
own C functions, which answer in nanoseconds. Where those are not to be found (they are looked for
by name, and tried, at import) Python asks.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from llvmlite import binding
from numba import njit, prange, types
from numpy.typing import NDArray
from torch import Tensor

from thalweg.kernels.disk import keep
from thalweg.kernels.memory import INNER, address, load, store

__all__ = ["COMPILED", "Located", "Waiting"]

Int64Array = NDArray[np.int64]

# A Python tensor is an object header, then the `at::Tensor` that C functions take the address of.
_HEADER = object.__basicsize__

# torch/csrc/inductor/aoti_torch/c/shim.h, the C interface that torch keeps stable; and two C++
# functions for what it lacks: c10::TensorImpl::grad() const, and
# torch::autograd::impl::bump_version(at::Tensor const&).
_FUNCTIONS = {
    "is_defined": ("torch_cpu", "aoti_torch_is_defined"),
    "is_contiguous": ("torch_cpu", "aoti_torch_is_contiguous"),
    "numel": ("torch_cpu", "aoti_torch_get_numel"),
    "dim": ("torch_cpu", "aoti_torch_get_dim"),
    "sizes": ("torch_cpu", "aoti_torch_get_sizes"),
    "dtype": ("torch_cpu", "aoti_torch_get_dtype"),
    "device": ("torch_cpu", "aoti_torch_get_device_type"),
    "layout": ("torch_cpu", "aoti_torch_get_layout"),
    "data": ("torch_cpu", "aoti_torch_get_data_ptr"),
    "grad": ("c10", "_ZNK3c1010TensorImpl4gradEv"),
    "touch": ("torch_cpu", "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"),
}


def _register() -> bool:
    """Make torch's functions known to the compiler by names of our own; False if one is missing."""
    folder = Path(torch.__file__).parent / "lib"
    for name, (library, symbol) in _FUNCTIONS.items():
        try:
            found = ctypes.CDLL(str(next(folder.glob(f"lib{library}.[sd][oy]*"))))
            address = ctypes.cast(getattr(found, symbol), ctypes.c_void_p).value
        except (StopIteration, OSError, AttributeError):
            return False
        binding.add_symbol(f"thalweg_torch_{name}", address)
    return True


def _function(name: str, result: types.Type, *arguments: types.Type) -> types.ExternalFunction:
    return types.ExternalFunction(f"thalweg_torch_{name}", result(*arguments))


# Each takes the address of an at::Tensor and of its answer, and returns an error code.
_is_defined = _function("is_defined", types.int32, types.intp, types.intp)
_is_contiguous = _function("is_contiguous", types.int32, types.intp, types.intp)
_numel = _function("numel", types.int32, types.intp, types.intp)
_dim = _function("dim", types.int32, types.intp, types.intp)
_sizes = _function("sizes", types.int32, types.intp, types.intp)
_dtype = _function("dtype", types.int32, types.intp, types.intp)
_device = _function("device", types.int32, types.intp, types.intp)
_layout = _function("layout", types.int32, types.intp, types.intp)
_data = _function("data", types.int32, types.intp, types.intp)
# These two take the address of a TensorImpl and of an at::Tensor.
_grad = _function("grad", types.intp, types.intp)
_touch = _function("touch", types.void, types.intp)


def _handles(tensors: Sequence[Tensor]) -> Int64Array:
    """Addresses of the ``at::Tensor`` inside Python tensors, valid while those are kept alive."""
    return np.array([id(t) + _HEADER for t in tensors], dtype=np.int64)


@njit(**INNER)
def _address(tensor, numel, dtype, answer):
    """Address of the data, or -1 unless dense, contiguous, on the CPU, of that size and type."""
    # An answer is read as wide as it was written, or the processor waits for the write to end.
    if _layout(tensor, answer) != 0 or load(answer, np.int32) != 0:
        return -1
    if _device(tensor, answer) != 0 or load(answer, np.int32) != 0:
        return -1
    if _dtype(tensor, answer) != 0 or load(answer, np.int32) != dtype:
        return -1
    if _numel(tensor, answer) != 0 or load(answer, np.int64) != numel:
        return -1
    if _is_contiguous(tensor, answer) != 0 or load(answer, np.uint8) == 0:
        return -1
    if numel == 0:
        return 0
    # A tensor of zeros that are not stored has no address.
    if _data(tensor, answer) != 0 or load(answer, np.int64) == 0:
        return -1
    return load(answer, np.int64)


@njit(**INNER)
def _has_shape(tensor, shape, answer):
    """Whether it has the shape at an address: the number of dimensions, then each."""
    dimensions = load(shape, np.int64)
    if _dim(tensor, answer) != 0 or load(answer, np.int64) != dimensions:
        return False
    if _sizes(tensor, answer) != 0:
        return False
    sizes, same = load(answer, np.int64), True
    for k in range(dimensions):
        same &= load(sizes + 8 * k, np.int64) == load(shape + 8 + 8 * k, np.int64)
    return same


@njit(**INNER)
def _implementation(tensor):
    """Address of the TensorImpl that an at::Tensor points to; it is all that one holds."""
    return load(tensor, np.int64)


@njit(**INNER)
def _gradient(implementation, answer):
    """Address of the ``at::Tensor`` that is a tensor's gradient, or 0 where it has none."""
    gradient = _grad(implementation)
    if _is_defined(gradient, answer) != 0 or load(answer, np.uint8) == 0:
        return 0
    return gradient


# What a reading found is a sum over tensors of these.
_CHANGED, _UNEVEN, _STRANGE = 1, 1 << 20, 1 << 40


# All arrays are given by their addresses: to compile for arrays takes several times as long.
# ``columns`` arrays of ``n`` tensors and of their lengths lie one after the other; a line of the
# table has ``2 + columns`` places; a line of the shapes begins with how many dimensions there are;
# ``scratch`` is eight bytes a parameter, for answers.


@njit(**INNER)
def _locate_one(
    i, n, columns, tensors, owners, lengths, dtypes, scratch, shapes, room, table, width, present,
    counts, after,
):  # fmt: skip
    p, length = load(tensors + 8 * i, np.int64), load(lengths + 8 * i, np.int64)
    dtype, answer, line = load(dtypes, np.int32), scratch + 8 * i, table + width * i
    implementation = _implementation(p)
    if implementation != load(owners + 8 * i, np.int64):
        return _STRANGE
    shape, found = shapes + room * i, 0
    data = _address(p, length, dtype, answer)
    store(line + 8, data)
    if data == -1 or not _has_shape(p, shape, answer):
        found = _STRANGE
    gradient = _gradient(implementation, answer)
    has = np.uint8(gradient != 0)
    if has:
        data = _address(gradient, length, dtype, answer)
        store(line + 16, data)
        if data == -1 or not _has_shape(gradient, shape, answer):
            found = _STRANGE
        _touch(p)
    for s in range(1, columns):
        place = 8 * (n * s + i)
        data = _address(
            load(tensors + place, np.int64),
            load(lengths + place, np.int64),
            load(dtypes + 4 * s, np.int32),
            answer,
        )
        store(line + 16 + 8 * s, data)
        if data == -1:
            found = _STRANGE
    if has != load(present + i, np.uint8):
        found += _CHANGED
        store(present + i, has)
    count = load(counts + 4 * i, np.float32) + np.float32(has)
    store(after + 4 * i, count)
    if count != load(counts, np.float32) + np.float32(1):
        found += _UNEVEN
    return found


# Named one by one: a tuple of them would be unpacked for every tensor.
def _locate(
    n, columns, tensors, owners, lengths, dtypes, scratch, shapes, room, table, width, present,
    counts, after,
):  # fmt: skip
    found = 0
    for i in prange(n):
        found += _locate_one(
            i, n, columns, tensors, owners, lengths, dtypes, scratch, shapes, room, table, width,
            present, counts, after,
        )  # fmt: skip
    return found


_locate_few, _locate_many = (njit(parallel=parallel)(_locate) for parallel in (False, True))
keep(_locate_few, _locate, "one core")
keep(_locate_many, _locate, "all cores")

_MANY = 128  # tensors that pay for waking a second thread


@njit(cache=True)
def _any_gradient(tensors, n, scratch):
    found = False
    for i in range(n):
        implementation = _implementation(load(tensors + 8 * i, np.int64))
        found |= _gradient(implementation, scratch) != 0
    return found


def _header_is_known() -> bool:
    """Whether the C++ tensor lies in the Python one where we look for it."""
    probe = torch.zeros(1)
    capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(probe)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    expected = ctypes.c_void_p.from_address(pointer(capsule, None)).value
    found = ctypes.c_void_p.from_address(id(probe) + _HEADER).value
    torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)
    return found == expected


COMPILED = _register() and _header_is_known()
_SCALAR_TYPE = {  # c10::ScalarType
    torch.uint8: 0,
    torch.int8: 1,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bfloat16: 15,
}


class Waiting:
    """Parameters of any kind that have no gradient yet."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Keep the parameters alive."""
        self._parameters = list(parameters)
        self._handles, self._scratch = _handles(parameters), np.zeros(1, dtype=np.int64)
        self._given = address(self._handles), len(self._handles), address(self._scratch)

    def over(self) -> bool:
        """Whether at least one of them has a gradient now."""
        if COMPILED:
            return bool(_any_gradient(*self._given))
        return any(p.grad is not None for p in self._parameters)


class Located:
    """Tensors whose addresses are read into a segment table.

    Attributes:
        present: uint8 ``(parameters,)``, 1 where the last reading found a gradient.
        upcoming: float32 ``(parameters,)``, step counts, one more where there is a gradient.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        counts: NDArray[np.float32],
    ) -> None:
        """Keep the tensors alive.

        Args:
            parameters: those whose gradients are read besides; all of one dtype.
            states: for each further column as many tensors as there are parameters, of one dtype.
            counts: float32 ``(parameters,)``, steps taken so far, read at every reading.
        """
        self._tensors = (list(parameters), *(list(state) for state in states))
        self._lengths = np.array([[t.numel() for t in row] for row in self._tensors])
        self._dtypes = [row[0].dtype for row in self._tensors]
        self._shapes = [p.shape for p in parameters]
        self._counts = counts
        self.present: NDArray[np.uint8] = np.zeros(len(parameters), dtype=np.uint8)
        self.upcoming = counts.copy()
        if COMPILED:
            handles = np.stack([_handles(row) for row in self._tensors])
            owners = np.array([ctypes.c_int64.from_address(h).value for h in handles[0].tolist()])
            kinds = np.array([_SCALAR_TYPE[dtype] for dtype in self._dtypes], dtype=np.int32)
            scratch = np.zeros(len(parameters), dtype=np.int64)
            shapes = np.zeros((len(parameters), 1 + max(map(len, self._shapes))), dtype=np.int64)
            for line, shape in zip(shapes, self._shapes, strict=True):
                line[: 1 + len(shape)] = len(shape), *shape
            self._arrays = handles, owners, self._lengths, kinds, scratch, shapes  # kept alive
            where = [address(a) for a in self._arrays]
            self._given = len(parameters), len(handles), *where, shapes.strides[0]
            self._counted = address(self.present), address(counts), address(self.upcoming)
            self._locate = _locate_few if len(parameters) < _MANY else _locate_many

    def read(self, table: Int64Array) -> tuple[bool, bool, bool]:
        """Write the addresses of parameters, gradients and states into a segment table.

        Autograd is told that the parameters that have a gradient are about to be written to.

        Args:
            table: int64 ``(parameters, 3 + states)``, as `thalweg.kernels.cpu.Segments` has it.

        Returns:
            Whether all tensors can be taken (dense, contiguous, on the CPU, of the shape and dtype
            that they had; if not, the table is of no use); whether other parameters have a
            gradient than before; whether all have one and the same step count.
        """
        if not COMPILED:
            return self._read_from_python(table)
        found = self._locate(*self._given, address(table), table.strides[0], *self._counted)
        if found == 0:
            return True, False, True
        return found < _STRANGE, found % _UNEVEN > 0, found < _UNEVEN

    def _read_from_python(self, table: Int64Array) -> tuple[bool, bool, bool]:
        parameters, *states = self._tensors
        gradients = [p.grad for p in parameters]
        columns: list[Sequence[Tensor | None]] = [parameters, gradients, *states]
        for column, tensors in enumerate(columns, start=1):
            like = max(0, column - 2)
            for i, t in enumerate(tensors):
                if t is not None:
                    if not _takes(t, self._lengths[like, i], self._dtypes[like]) or (
                        column <= 2 and t.shape != self._shapes[i]
                    ):
                        return False, True, False
                    table[i, column] = t.data_ptr()
        present = np.array([g is not None for g in gradients], dtype=np.uint8)
        changed = bool((present != self.present).any())
        self.present[:] = present
        np.add(self._counts, present, out=self.upcoming)
        torch.autograd.graph.increment_version(
            [p for p, g in zip(parameters, gradients, strict=True) if g is not None]
        )
        return True, changed, bool((self.upcoming == self._counts[0] + 1).all())


def _takes(t: Tensor, length: int, dtype: torch.dtype) -> bool:
    return (
        t.layout == torch.strided
        and t.device.type == "cpu"
        and t.dtype == dtype
        and t.numel() == length
        and t.is_contiguous()
        and (length == 0 or t.data_ptr() != 0)
    )
