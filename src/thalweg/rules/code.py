"""What a function does, to tell it from another: its code, and what that leans on.

Nothing of it depends on where the function stands in its file, or on the process that asks.
"""

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

__all__ = ["instructions", "leans_on"]


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
