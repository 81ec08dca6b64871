"""Compiled code kept on disk from one process to the next."""

from collections.abc import Callable
from hashlib import sha256
from itertools import count
from pathlib import Path
from secrets import randbits
from typing import Any

import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc

from thalweg.kernels.memory import JIT

__all__ = ["c_function", "keep"]

# Numba looks at the file of the function alone; what it calls lies in the others of this room.
_SOURCES = sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).digest()

# Numba numbers the functions of a process from 1, and names what it compiles by that. Two that were
# compiled by different processes may have one name, and of two of one name that are loaded from
# disk one gets the other's code (seen: a step by another rule). So none begins where another did.
FunctionIdentity._unique_ids = count(randbits(48))


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's disk cache, with a key of our own.

    Numba's holds the functions in a closure by identity, which no two processes share, and would
    not see that a rule was edited.
    """

    def __init__(self, function: Callable[..., Any], key: bytes) -> None:
        super().__init__(function)
        self._key = key
        # An index of its own: two processes that compile at once would lose each other's entries.
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=f"{self._impl.filename_base}-{key.hex()[:16]}",
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return sig, codegen.magic_tuple(), self._key


def keep(compiled: Any, function: Callable[..., Any], *key: Any) -> None:
    """Keep what Numba compiles of a function on disk.

    Args:
        compiled: what ``njit`` or ``cfunc`` made of it, before it is compiled.
        function: the Python function.
        key: all that tells it from others of the same name; must not change between processes.
    """
    compiled._cache = _Cache(function, sha256(repr((_SOURCES, *key)).encode()).digest())


_GIVEN: list[CFunc] = []  # whose addresses were given away


def c_function(
    function: Callable[..., Any], key: tuple[Any, ...] | None, arguments: int = 4
) -> int:
    """Address of a C function of int64s to an int64, compiled or taken from disk.

    Args:
        function: the Python function.
        key: as `keep` takes it; None for what is not to be kept.
        arguments: how many it takes.
    """
    signature = numba.int64(*[numba.int64] * arguments)
    made = CFunc(function, (signature.args, signature.return_type), {}, JIT)
    if key is not None:
        keep(made, function, *key)
    made.compile()
    _GIVEN.append(made)
    return int(made.address or 0)
