"""The optimizers' reference page, from the registry: ``python -m thalweg.optim.reference``."""

import inspect
from collections.abc import Iterator

from thalweg.optim.registry import OPTIMIZERS, Entry
from thalweg.rules.rule import COMMON

__all__ = ["page"]

_INTRODUCTION = """\
# Optimizers

<!-- Made from the registry: python -m thalweg.optim.reference > docs/optimizers.md -->

The classes of `thalweg.optim` are `torch.optim.Optimizer`s with the arguments, defaults, parameter
groups, hooks and `state_dict` of their namesakes in `torch.optim`; checkpoints of one load in the
other. Arguments marked * choose a convention that `torch.optim` does not have.

One kernel takes the step of all dense, contiguous float32 and float64 parameters on the CPU in one
call; anything else that is dense and real (half precision, transposed views, other devices) takes
its step by torch operations. A sparse or complex gradient is an error that names the parameter.
`foreach` and `fused` are accepted and have no effect, for there is one kernel; `capturable=True`
and `differentiable=True` are errors.

Symbols: x parameter, g gradient, t step from 1, `lr` learning rate, mu momentum; products and roots
elementwise.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_INTRODUCTION, *(line for row in OPTIMIZERS.values() for line in _part(row))])


def _part(row: Entry) -> Iterator[str]:
    yield f"## {row.label}\n"
    yield f"`thalweg.optim.{row.constructor.__name__}`, in a study `{row.name}`\n"
    yield f"```text\n{row.formula}\n```\n"
    yield f"{row.paper}.\n"
    yield from _arguments(row)
    if row.conventions:
        yield "Conventions:\n"
        yield from (f"- `{option}`: {meaning}." for option, meaning in row.conventions.items())
        yield ""
    low, high = row.lr_range
    yield f"- Usual learning rates: {low:g} to {high:g}, over which a study's rates are spread."
    yield from _state(row)
    yield f"- Tested against `torch.optim.{row.oracle.__name__}`: {_tested(row)}\n"


def _arguments(row: Entry) -> Iterator[str]:
    rules = [row.resolved(valid.arguments) for valid in row.valid]
    known = {h.name: h for rule in rules for h in (*rule.hyper, *COMMON)}
    theirs = inspect.signature(row.oracle).parameters
    yield "| argument | default | range |"
    yield "|---|---|---|"
    for name, parameter in inspect.signature(row.constructor).parameters.items():
        if name != "params":
            star = "" if name in theirs else " *"
            limits = known[name].range if name in known else ""
            yield f"| `{name}`{star} | `{parameter.default}` | {limits} |"
    yield ""


def _state(row: Entry) -> Iterator[str]:
    kept: dict[tuple[str, ...], list[str]] = {}
    for valid in row.valid:
        arguments = ", ".join(f"{k}={v}" for k, v in valid.arguments.items() if k != "lr")
        kept.setdefault(row.state(valid.arguments), []).append(arguments or "defaults")
        if row.needs_closure(valid.arguments):
            yield f"- With {arguments} `step` needs a closure."
    for state, ways in kept.items():
        names = ", ".join(f"`{name}`" for name in state) or "none"
        when = "" if len(kept) == 1 else f" (as with {min(ways, key=len)})"
        yield f"- State: {names}; {4 * len(state)} bytes per float32 parameter{when}."


def _tested(row: Entry) -> str:
    direct = sum(valid.oracle is not None for valid in row.valid)
    tolerance = row.tolerance
    text = (
        f"{direct} sets of arguments, weights after 100 steps of a network equal within "
        f"{tolerance.float32:g} (float32) and {tolerance.float64:g} (float64) of each tensor's "
        f"norm; {tolerance.reason}."
    )
    alone = dict.fromkeys(valid.reason for valid in row.valid if valid.reason)
    return text + (f" Against the formula alone where {'; '.join(alone)}." if alone else "")


if __name__ == "__main__":
    print(page(), end="")
