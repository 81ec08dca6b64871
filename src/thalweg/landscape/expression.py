"""What a person types for a function of x, or of x and y, made into torch operations.

Python's own parser reads it, and a walk over its tree takes what is listed here and nothing else:
no name is looked up anywhere but in these tables, and nothing is evaluated but torch operations.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg.landscape.arguments import LandscapeError

__all__ = ["CALLS", "CONSTANTS", "VARIABLES", "Evaluate", "parse"]

Evaluate: TypeAlias = Callable[[Sequence[Tensor]], Tensor]

VARIABLES = ("x", "y")
CONSTANTS: Mapping[str, float] = {"pi": torch.pi, "e": torch.e}
CALLS: Mapping[str, tuple[int, Callable[..., Tensor]]] = {
    "sin": (1, torch.sin),
    "cos": (1, torch.cos),
    "tan": (1, torch.tan),
    "asin": (1, torch.asin),
    "acos": (1, torch.acos),
    "atan": (1, torch.atan),
    "sinh": (1, torch.sinh),
    "cosh": (1, torch.cosh),
    "tanh": (1, torch.tanh),
    "exp": (1, torch.exp),
    "log": (1, torch.log),
    "ln": (1, torch.log),
    "sqrt": (1, torch.sqrt),
    "abs": (1, torch.abs),
    "sign": (1, torch.sign),
    "sigmoid": (1, torch.sigmoid),
    "relu": (1, torch.relu),
    "softplus": (1, torch.nn.functional.softplus),
    "maximum": (2, torch.maximum),
    "minimum": (2, torch.minimum),
    "max": (2, torch.maximum),
    "min": (2, torch.minimum),
}

LONGEST = 1000  # characters
DEEPEST = 200  # operations within each other
SHOWN = 80  # characters, in messages

_OPERATIONS: Mapping[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.div,
    ast.Pow: torch.pow,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[Tensor], Tensor]] = {
    ast.USub: torch.neg,
    ast.UAdd: torch.clone,
}
# What people type, or paste, for what Python writes otherwise.
_SPELLINGS = {"^": "**", "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "π": " pi "}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TWICE = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹]\s*(\^|\*\*)")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>\*\*|//|[-+*/(),])|(?P<other>\S))",
    re.ASCII,
)


@dataclass(frozen=True)
class _Typed:
    """What was typed, as Python writes it, and from which column each character of that is."""

    text: str
    python: str
    columns: list[int]

    def error(self, at: int, problem: str) -> LandscapeError:
        """For what stands at a place of the Python text."""
        column = self.columns[at] if at < len(self.columns) else len(self.text) + 1
        shown = self.text if len(self.text) <= SHOWN else self.text[:SHOWN] + "…"
        return LandscapeError("expression", f"{shown!r}, column {column}: {problem}")

    def between(self, start: int, end: int) -> str:
        """What was typed for a stretch of the Python text."""
        last = self.columns[end] - 1 if end < len(self.columns) else len(self.text)
        return self.text[self.columns[start] - 1 : last].strip()


@dataclass(frozen=True)
class _Part:
    """A part of the expression: what it computes, and what it is if it has no variable."""

    evaluate: Evaluate
    constant: Tensor | None = None


def parse(text: str) -> tuple[tuple[str, ...], Evaluate]:
    """An expression in x, or x and y, as a function of tensors.

    Numbers, ``x y pi e``, ``+ - * /``, powers by ``**`` or ``^``, and calls of `CALLS`; ``x²``,
    ``×``, ``−`` and ``π`` are taken as well.

    Args:
        text: what was typed.

    Returns:
        The names of its variables, and a function of their values: tensors of one shape, float64
        for full precision, to one of that shape, differentiable as often as its operations are.

    Raises:
        LandscapeError: for anything else, with the column, from 1, and what stands there.
    """
    if not text.strip():
        raise LandscapeError("expression", "is empty; write a function of x, or of x and y")
    if len(text) > LONGEST:
        raise LandscapeError(
            "expression", f"has {len(text):,} characters, and at most {LONGEST:,} are taken"
        )
    typed = _respell(text)
    used = _check_words(typed)
    if "x" not in used:
        has = "y and no x" if used else "no variable"
        raise LandscapeError(
            "expression", f"{text!r} has {has}; write a function of x, or of x and y"
        )
    variables = VARIABLES[: 2 if "y" in used else 1]
    try:
        tree = ast.parse(typed.python, mode="eval").body
    except SyntaxError as error:
        at = (error.offset or 1) - 1
        raise typed.error(at, f"{typed.python[at : at + 1]!r} cannot stand here") from None
    except (MemoryError, RecursionError):
        raise _too_deep(text) from None
    return variables, _walk(typed, tree, variables, 0).evaluate


def _too_deep(text: str) -> LandscapeError:
    return LandscapeError(
        "expression",
        f"{text[:40]!r}… has more than {DEEPEST} operations within each other; write less",
    )


def _respell(text: str) -> _Typed:
    if twice := _TWICE.search(text):
        raise LandscapeError(
            "expression",
            f"{text!r}, column {twice.start(1) + 1}: a power of a power; write parentheses",
        )
    python: list[str] = []
    columns: list[int] = []
    raised = {m.start(): m.end() for m in _SUPERSCRIPT.finditer(text)}
    at = 0
    while at < len(text):
        end = raised.get(at, at + 1)
        piece = text[at:end]
        if at in raised:
            new = "**" + piece.translate(_SUPERSCRIPTS)
        else:
            new = " " if piece.isspace() else _SPELLINGS.get(piece, piece)
        if python or new.strip():  # Python takes blanks before an expression for a block
            new = new if python else new.lstrip()
            python.append(new)
            columns += [at + 1] * len(new)
        at = end
    return _Typed(text, "".join(python), columns)


def _check_words(typed: _Typed) -> set[str]:
    """The names used, once each word and sign is known and none misses a sign between."""
    used = set()
    open_at: list[int] = []
    before: re.Match[str] | None = None
    for token in _TOKEN.finditer(typed.python):
        if token.lastgroup is None:
            continue
        start, word = token.start(token.lastgroup), token[token.lastgroup]
        if token.lastgroup == "other":
            raise typed.error(
                start,
                f"{typed.between(start, start + 1)!r} means nothing here; there are + - * / **, "
                "parentheses and functions",
            )
        if token.lastgroup == "name":
            _check_name(typed, start, word)
            used.add(word)
        if before is not None and _side_by_side(before, token):
            first = before[before.lastgroup or 0]
            form = f"{first}({word})" if first in CALLS else f"{first}*{word}"
            raise typed.error(start, f"no sign stands between {first!r} and {word!r}; write {form}")
        if word == "(":
            open_at.append(start)
            if len(open_at) > DEEPEST // 2:
                raise _too_deep(typed.text)
        elif word == ")":
            if not open_at:
                raise typed.error(start, "this ')' closes nothing")
            open_at.pop()
        before = token
    if open_at:
        raise typed.error(open_at[-1], "this '(' is never closed")
    if before is not None and before["sign"] not in (None, ")"):
        raise typed.error(len(typed.python), f"nothing follows {before['sign']!r}")
    return used & set(VARIABLES)


def _side_by_side(before: re.Match[str], token: re.Match[str]) -> bool:
    """Whether two operands follow each other, which a person means as a product."""
    ends = before.lastgroup in ("number", "name") or before["sign"] == ")"
    begins = token.lastgroup in ("number", "name") or token["sign"] == "("
    call = before.lastgroup == "name" and token["sign"] == "(" and before["name"] in CALLS
    return ends and begins and not call


def _check_name(typed: _Typed, at: int, name: str) -> None:
    known = (*VARIABLES, *CONSTANTS, *CALLS)
    if name in known:
        return
    near = get_close_matches(name.lower(), known, 1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise typed.error(at, f"there is no {name!r}; {meant}")


def _walk(typed: _Typed, node: ast.expr, variables: Sequence[str], depth: int) -> _Part:
    if depth > DEEPEST:
        raise _too_deep(typed.text)

    def inner(one: ast.expr) -> _Part:
        return _walk(typed, one, variables, depth + 1)

    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _number(typed, node, value)
        case ast.Name(id=name) if name in CONSTANTS:
            return _number(typed, node, CONSTANTS[name])
        case ast.Name(id=name) if name in variables:
            place = variables.index(name)
            return _Part(lambda values: values[place])
        case ast.Name(id=name):
            raise typed.error(node.col_offset, f"{name} is a function; write {name}(x)")
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            return _apply(typed, node, _SIGNS[type(sign)], [inner(operand)])
        case ast.BinOp(op=operation, left=left, right=right) if type(operation) in _OPERATIONS:
            apply = _OPERATIONS[type(operation)]
            return _apply(typed, node, apply, [inner(left), inner(right)])
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in CALLS:
            count, function = CALLS[name]
            if len(given) != count:
                raise typed.error(
                    node.col_offset,
                    f"{name} takes {'one number' if count == 1 else 'two numbers'}, "
                    f"got {len(given)}",
                )
            return _apply(typed, node, function, list(map(inner, given)))
        case ast.Tuple():
            raise typed.error(
                node.col_offset,
                f"{_part(typed, node)!r} is more than one number; the decimal point is '.'",
            )
    raise typed.error(
        node.col_offset,
        f"{_part(typed, node)!r} is no sum, product, power or call of a function",
    )


def _part(typed: _Typed, node: ast.expr) -> str:
    return typed.between(node.col_offset, node.end_col_offset or node.col_offset + 1)


def _number(typed: _Typed, node: ast.expr, value: float) -> _Part:
    try:
        number = torch.tensor(float(value), dtype=torch.float64)
    except OverflowError:
        number = torch.tensor(torch.inf, dtype=torch.float64)
    return _constant(typed, node, number)


def _constant(typed: _Typed, node: ast.expr, number: Tensor) -> _Part:
    if not number.isfinite():
        raise typed.error(node.col_offset, f"{_part(typed, node)!r} is no finite number")
    return _Part(lambda values: number, number)


def _apply(
    typed: _Typed, node: ast.expr, function: Callable[..., Tensor], parts: Sequence[_Part]
) -> _Part:
    constants = [part.constant for part in parts if part.constant is not None]
    if len(constants) == len(parts):
        return _constant(typed, node, function(*constants))
    if len(parts) == 1:
        (only,) = parts
        return _Part(lambda values: function(only.evaluate(values)))
    left, right = parts
    if function is torch.pow and right.constant is not None:
        # By a number: its derivatives then are those of x**n, of which torch has special cases.
        exponent = right.constant.item()
        return _Part(lambda values: torch.pow(left.evaluate(values), exponent))
    return _Part(lambda values: function(left.evaluate(values), right.evaluate(values)))
