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


@njit(cache=True)
def _same_entries(dicts, keys, expected):
    same = True
    for i in range(len(dicts)):
        for k in range(len(keys)):
            same &= _dict_get(dicts[i], keys[k]) == expected[k, i]
    return same


@njit(cache=True)
def _same_values(mapping, expected):
    word = np.zeros(3, dtype=np.int64)
    at = word.ctypes.data
    for i in range(len(expected)):
        if _dict_next(mapping, at, at + 8, at + 16) == 0 or word[2] != expected[i]:
            return False
    return _dict_next(mapping, at, at + 8, at + 16) == 0


@njit(cache=True)
def _same_items(items, expected):
    if _list_size(items) != len(expected):
        return False
    same = True
    for i in range(len(expected)):
        same &= _list_get(items, i) == expected[i]
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
            np.array([_ids(kept) for kept in self._kept]),
        )

    def hold(self) -> bool:
        """Whether they hold the same objects still."""
        if _COMPILED:
            return bool(_same_entries(*self._ids))
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
        self._ids = _ids(self._kept)

    def hold(self, mapping: Mapping[Any, Any]) -> bool:
        """Whether this is the same dictionary, with the same objects in it."""
        if mapping is not self._mapping:
            return False
        if _COMPILED and isinstance(mapping, dict):
            return bool(_same_values(id(mapping), self._ids))
        return _identical(list(mapping.values()), self._kept)


class Items:
    """The objects in a list."""

    def __init__(self, items: Sequence[Any]) -> None:
        """Remember, and keep alive, what the list holds now."""
        self._kept = list(items)
        self._ids = _ids(self._kept)

    def hold(self, items: Sequence[Any]) -> bool:
        """Whether a list holds the same objects."""
        if _COMPILED and isinstance(items, list):
            return bool(_same_items(id(items), self._ids))
        return _identical(items, self._kept)


def _identical(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))
