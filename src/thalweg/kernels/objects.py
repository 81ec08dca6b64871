"""Whether Python containers still hold the same objects, asked of thousands at a time.

A person may replace ``optimizer.state[p]["exp_avg"]`` between two steps. Looking from Python costs
as much as the step; compiled code looks through CPython's stable C interface.
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from operator import is_, itemgetter
from typing import Any

import numpy as np
from llvmlite import binding
from numba import njit, types
from numpy.typing import NDArray

from thalweg.kernels.memory import address, load

__all__ = ["Entries", "Items", "Values"]

Int64Array = NDArray[np.int64]

_COMPILED = sys.implementation.name == "cpython"
if _COMPILED:
    for _name in ("PyDict_GetItem", "PyDict_Next", "PyList_GetItem", "PyList_Size"):
        _address = ctypes.cast(getattr(ctypes.pythonapi, _name), ctypes.c_void_p).value
        binding.add_symbol(f"thalweg_{_name}", _address)

# All take and return addresses of Python objects; those returned are borrowed, 0 for none.
_dict_get = types.ExternalFunction("thalweg_PyDict_GetItem", types.intp(types.intp, types.intp))
_dict_next = types.ExternalFunction(
    "thalweg_PyDict_Next", types.int32(types.intp, types.intp, types.intp, types.intp)
)
_list_get = types.ExternalFunction("thalweg_PyList_GetItem", types.intp(types.intp, types.intp))
_list_size = types.ExternalFunction("thalweg_PyList_Size", types.intp(types.intp))


def _ids(objects: Sequence[Any]) -> Int64Array:
    return np.array([id(o) for o in objects], dtype=np.int64)


# Arrays are given by address: to compile for arrays takes several times as long.


@njit(cache=True)
def _same_entries(dicts, n, keys, k, expected):
    same = True
    for i in range(n):
        for j in range(k):
            held = _dict_get(load(dicts + 8 * i, np.int64), load(keys + 8 * j, np.int64))
            same &= held == load(expected + 8 * (n * j + i), np.int64)
    return same


# ``scratch`` is the address of three words.
@njit(cache=True)
def _same_values(mapping, expected, n, scratch):
    key, value = scratch + 8, scratch + 16
    for i in range(n):
        if _dict_next(mapping, scratch, key, value) == 0:
            return False
        if load(value, np.int64) != load(expected + 8 * i, np.int64):
            return False
    return _dict_next(mapping, scratch, key, value) == 0


@njit(cache=True)
def _same_items(items, expected, n):
    if _list_size(items) != n:
        return False
    same = True
    for i in range(n):
        same &= _list_get(items, i) == load(expected + 8 * i, np.int64)
    return same


class Entries:
    """The objects under some keys of many dictionaries."""

    def __init__(self, dicts: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
        """Remember, and keep alive, what the dictionaries hold now; each must have all keys."""
        self._dicts, self._keys = list(dicts), tuple(keys)
        self._kept = [[d[key] for d in dicts] for key in keys]
        self._ids = (
            _ids(self._dicts),
            _ids(self._keys),
            _ids([o for kept in self._kept for o in kept]),
        )
        of_dicts, of_keys, of_kept = map(address, self._ids)
        self._given = of_dicts, len(self._dicts), of_keys, len(self._keys), of_kept

    def hold(self) -> bool:
        """Whether they hold the same objects still."""
        if _COMPILED:
            return bool(_same_entries(*self._given))
        try:
            return all(
                all(map(is_, map(itemgetter(key), self._dicts), kept))
                for key, kept in zip(self._keys, self._kept, strict=True)
            )
        except KeyError:
            return False


class Values:
    """The objects that a dictionary holds, in its order."""

    def __init__(self, mapping: Mapping[Any, Any]) -> None:
        """Remember, and keep alive, what the dictionary holds now."""
        self._mapping, self._kept = mapping, list(mapping.values())
        self._ids, self._scratch = _ids(self._kept), np.zeros(3, dtype=np.int64)
        self._given = address(self._ids), len(self._kept), address(self._scratch)

    def hold(self, mapping: Mapping[Any, Any]) -> bool:
        """Whether this is the same dictionary, with the same objects in it."""
        if mapping is not self._mapping:
            return False
        if _COMPILED and isinstance(mapping, dict):
            self._scratch[0] = 0
            return bool(_same_values(id(mapping), *self._given))
        return _identical(list(mapping.values()), self._kept)


class Items:
    """The objects in a list."""

    def __init__(self, items: Sequence[Any]) -> None:
        """Remember, and keep alive, what the list holds now."""
        self._kept = list(items)
        self._ids = _ids(self._kept)
        self._given = address(self._ids), len(self._kept)

    def hold(self, items: Sequence[Any]) -> bool:
        """Whether a list holds the same objects."""
        if _COMPILED and isinstance(items, list):
            return bool(_same_items(id(items), *self._given))
        return _identical(items, self._kept)


def _identical(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))
