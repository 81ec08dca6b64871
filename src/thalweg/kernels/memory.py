"""Memory at a given address, in compiled code."""

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["INNER", "JIT", "SUM", "call", "load", "scratch", "span", "view"]

# Without error_model="numpy" the check for division by zero stops LLVM from vectorising. Of
# fastmath only what keeps NaN and infinity as they are: a diverging run must be seen to diverge.
JIT: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}

# For what only compiled code calls: it needs no way in from Python or C, and compiles sooner. It
# becomes part of its caller. As a function of its own it would be optimised twice, by itself and
# there, and the process that compiles run one and those that load it from disk the other: seen to
# round in another way.
INNER: dict[str, Any] = JIT | {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "forceinline": True,
}

# For sums, whose order may change: it has to, for several numbers to be added at once.
SUM: dict[str, Any] = INNER | {"fastmath": {"contract", "nsz", "reassoc"}}


@intrinsic
def load(typing_context: Any, address: Any, kind: Any) -> Any:
    """The number of a NumPy type that lies at an address."""
    number = kind.instance_type

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = context.get_value_type(types.CPointer(number))
        return builder.load(builder.inttoptr(arguments[0], pointer))

    return number(address, kind), codegen


@intrinsic
def _pointer(typing_context: Any, address: Any, kind: Any) -> Any:
    pointer = types.CPointer(kind.dtype)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, kind), codegen


def scratch(size: int) -> Any:
    """A function that returns the address of so many bytes on the stack of whoever calls it."""

    @intrinsic
    def reserve(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            room = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), size))
            room.align = 64
            return builder.ptrtoint(room, ir.IntType(64))

        return types.int64(), codegen

    return reserve


@njit(**INNER)
def span(address, kind, n):
    """``n`` elements of a NumPy type from an address."""
    return carray(_pointer(address, kind), n)


@njit(**INNER)
def view(address, like, first, n):
    """``n`` elements from the one numbered ``first``, of the type of the array ``like``."""
    return span(address + first * like.itemsize, like.dtype, n)


@intrinsic
def call(typing_context: Any, function: Any, arguments: Any) -> Any:
    """Call a C function at an address, from a tuple of int64 to an int64."""
    count = len(arguments)

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        integer = ir.IntType(64)
        kind = ir.FunctionType(integer, [integer] * count)
        values = cgutils.unpack_tuple(builder, given[1], count)
        return builder.call(builder.inttoptr(given[0], kind.as_pointer()), values)

    return types.int64(types.int64, types.UniTuple(types.int64, count)), codegen
