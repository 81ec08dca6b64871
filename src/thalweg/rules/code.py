"""What a function does, to tell it from another: its code, and what that leans on.

Nothing of it depends on where the function stands in its file, or on the process that asks.
"""

import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["digest", "instructions", "leans_on"]


def instructions(code: CodeType) -> tuple[Any, ...]:
    """All of a code but its place in a file, as nested tuples with the same `repr` everywhere."""
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        code.co_exceptiontable,
        tuple(map(_constant, code.co_consts)),
    )


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return instructions(value)
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    if isinstance(value, frozenset):  # whose order is another in each process
        return "frozenset", sorted(map(repr, value))
    return value


def leans_on(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function finds outside of itself, by name: globals that it uses, and its closure."""
    known = function.__globals__
    found = {name: known[name] for name in _names(function.__code__) if name in known}
    cells = function.__closure__ or ()
    closed_over = dict(zip(function.__code__.co_freevars, cells, strict=True))
    return found | {name: cell.cell_contents for name, cell in closed_over.items()}


def _names(code: CodeType) -> Iterator[str]:
    """Of globals, and of attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


# Fields of rules and their hyperparameters that no number depends on.
_WORDS = ("paper", "formula", "helps", "fails", "lr_range", "meaning")


def digest(value: Any) -> str:
    """16 hexadecimal digits that change with what a function, or a rule of functions, does.

    The code of a person's own functions counts, that of those that they call, and the values that
    they use; of what is installed only the name. The same in every process, but not for every
    version of Python.
    """
    return sha256(repr(_Content(value).found).encode()).hexdigest()[:16]


class _Content:
    """What makes a value, as nested tuples with the same `repr` in every process."""

    def __init__(self, value: Any) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}  # kept alive, or another would get its id
        self.found = self._of(value)

    def _of(self, value: Any) -> Any:
        kind = type(value).__qualname__
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return kind, value
        if isinstance(value, tuple | list):
            return kind, *map(self._of, value)
        if isinstance(value, set | frozenset):
            return kind, sorted(repr(self._of(v)) for v in value)
        if isinstance(value, Mapping):
            return kind, sorted((repr(self._of(k)), self._of(v)) for k, v in value.items())
        if isinstance(value, ModuleType):
            return kind, value.__name__
        if hasattr(value, "dtype") and hasattr(value, "tolist"):  # of NumPy or torch
            return kind, str(value.dtype), tuple(value.shape), _numbers(value)
        if id(value) in self._seen:  # which may have led here
            return kind, self._seen[id(value)][0]
        self._seen[id(value)] = len(self._seen), value
        return kind, *self._inside(value)

    def _inside(self, value: Any) -> tuple[Any, ...]:
        name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(value, FunctionType) and not _is_installed(value.__module__):
            given = value.__defaults__, value.__kwdefaults__
            return instructions(value.__code__), *map(self._of, (*given, leans_on(value)))
        if hasattr(value, "__wrapped__"):  # by functools.cache, say, or a checker of types
            return self._inside(value.__wrapped__)
        if isinstance(value, partial):
            return tuple(map(self._of, (value.func, value.args, value.keywords)))
        if isinstance(value, MethodType):
            return self._of(value.__func__), self._of(value.__self__)
        if isinstance(value, type):
            own = {} if _is_installed(value.__module__) else vars(value)
            return *name, self._of({k: v for k, v in own.items() if isinstance(v, FunctionType)})
        if is_dataclass(value):
            kept = [f.name for f in fields(value) if f.name not in _WORDS]
            return tuple((k, self._of(getattr(value, k))) for k in kept)
        return *name, self._of(getattr(value, "__dict__", None))


def _numbers(array: Any) -> str:
    """Hash of an array's or a tensor's numbers, which may be too many to write down."""
    if hasattr(array, "detach"):
        import torch

        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    whole = array.tolist() if array.dtype.hasobject else array.tobytes()
    return sha256(whole if isinstance(whole, bytes) else repr(whole).encode()).hexdigest()


@cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is of Python, of this package or of another that is not being worked on."""
    package = (module or "builtins").partition(".")[0]
    if package == __name__.partition(".")[0] or package in sys.stdlib_module_names:
        return True
    home = getattr(sys.modules.get(package), "__file__", None)
    paths = sysconfig.get_paths()
    return home is not None and home.startswith((paths["purelib"], paths["platlib"]))
