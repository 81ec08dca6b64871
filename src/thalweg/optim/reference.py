"""The optimizers' reference page, from their rules: ``python -m thalweg.optim.reference``."""

from collections.abc import Iterator
from inspect import cleandoc

from torch.optim import LBFGS

from thalweg.optim.base import meaning
from thalweg.optim.options import OPTIONS
from thalweg.optim.registry import BUILT_IN, OPTIMIZERS, Entry, key
from thalweg.optim.wrappers import GD, SAM, Accumulate, Lookahead

__all__ = ["AROUND", "around", "page", "part"]

# Those that have no rule of their own.
AROUND = {key(cls.__name__): cls for cls in (SAM, Lookahead, Accumulate, GD, LBFGS)}

_INTRODUCTION = """\
# Optimizers

<!-- Made from the rules: python -m thalweg.optim.reference > docs/optimizers.md -->

The classes of `thalweg.optim` are `torch.optim.Optimizer`s. Those that torch.optim has too take
its arguments, in its order and with its defaults, lead to the same weights, and load its
checkpoints, as it loads theirs; arguments marked * are choices that torch.optim does not have. The
others take the arguments of their authors' code, and ADOPT `clip` for its `clip_lambda`. A value
outside the ranges given here is an error, also where torch takes it (a momentum of 1, 0 for False).

One kernel takes the step of all dense, contiguous parameters on the CPU in one call, in float32 or
float64, and bfloat16 and float16 computed in float32; any other dense tensor (transposed views,
other devices) and rules of whole matrices take theirs by torch operations. A sparse or complex
parameter or gradient is an error that names it. States of bfloat16 and float16 parameters are kept
as these are, as torch keeps them, and squares below float16's range are zero there.

Symbols: x parameter, g gradient, t step from 1, `lr` learning rate, mu momentum; products and roots
elementwise, ‖ ‖ the Euclidean norm.
"""

_COMMON = """\
## What all of them take

| argument | default | range | |
|---|---|---|---|
"""


def page() -> str:
    """The whole page, in Markdown."""
    common = [_line(OPTIMIZERS["sgd"], name, "") for name in _shared()]
    parts = [line for row in _rows() for line in part(row)]
    others = [line for name in AROUND for line in around(name)]
    shared = [_COMMON + "\n".join(common), ""]
    return "\n".join([_INTRODUCTION, *shared, *_overview(), *parts, *others])


def _rows() -> list[Entry]:
    return [OPTIMIZERS[name] for name in BUILT_IN]


def _shared() -> list[str]:
    """Arguments that mean the same for all."""
    return [
        "weight_decay",
        "decoupled_weight_decay",
        "maximize",
        "clip_value",
        "clip_norm",
        "ema_decay",
        *OPTIONS,
    ]


def _overview() -> Iterator[str]:
    yield "## All at a glance\n"
    yield "| optimizer | in a study | bytes of state a parameter | usual learning rates |"
    yield "|---|---|---|---|"
    for row in _rows():
        low, high = row.lr_range
        name = row.constructor.__name__
        yield (
            f"| [{name}](#{name.lower()}) | `{row.name}` | {row.bytes_a_parameter({}):.3g} "
            f"| {low:g} to {high:g} |"
        )
    yield "\nBytes are those of float32 parameters, for a matrix of 1024 by 1024."
    links = ", ".join(f"[{cls.__name__}](#{name})" for name, cls in AROUND.items())
    yield f"Around any of them, or over the whole training set: {links}.\n"


def part(row: Entry) -> Iterator[str]:
    """Lines of one optimizer's page, in Markdown."""
    rule = row.rule
    yield f"## {row.constructor.__name__}\n"
    yield f"{(row.constructor.__doc__ or '').splitlines()[0]}\n"
    yield f"```text\n{rule.formula}\n```\n"
    yield f"{rule.paper}.\n"
    yield f"- Helps: {rule.helps}"
    yield f"- Fails: {rule.fails}\n"
    yield "| argument | default | range | |"
    yield "|---|---|---|---|"
    theirs = row.constructor.torchs_arguments
    shared = set(_shared())
    for name in list(row.constructor.signature().parameters)[1:]:
        if name not in shared or name in {h.name for h in rule.hyper} or name in theirs:
            yield _line(row, name, "" if not theirs or name in theirs else " *")
    said = theirs | {h.name for h in rule.hyper}
    rest = [f"`{name}`" for name in _shared() if name not in said]
    yield f"\nAnd, as all of them: {', '.join(rest)}."
    yield ""
    yield from _state(row)


def around(name: str) -> Iterator[str]:
    """Lines of the page of one that has no rule of its own, in Markdown."""
    cls = AROUND[name]
    yield f"## {cls.__name__}\n"
    if cls is LBFGS:
        yield "torch's own, `torch.optim.LBFGS`, for a closure over the whole training set.\n"
        return
    first, _, rest = cleandoc(cls.__doc__ or "").partition("\n")
    yield f"{first}\n"
    yield f"```text\n{rest.strip()}\n```\n"


def _line(row: Entry, name: str, star: str) -> str:
    known = {**row.rule.every_hyper, **OPTIONS}
    limits = known[name].range if name in known else ""
    default = row.constructor.signature().parameters[name].default
    said = meaning(row.rule, name).replace("|", "\\|")  # which would end the cell
    return f"| `{name}`{star} | `{default}` | {limits} | {said} |"


def _state(row: Entry) -> Iterator[str]:
    matrix, vector = (row.resolved({}, shape) for shape in ((1024, 1024), (1024,)))
    names = ", ".join(f"`{name}`" for name in (*matrix.state, *matrix.scalars)) or "none"
    yield f"- State: {names}; {row.bytes_a_parameter({}):.3g} bytes a float32 parameter."
    if matrix.moments:
        halves = row.bytes_a_parameter({"state": "bfloat16"})
        eighths = row.bytes_a_parameter({"state": "8bit"})
        yield f'- With `state="bfloat16"` {halves:.3g}, with `state="8bit"` {eighths:.3g} bytes.'
    if vector.state != matrix.state:
        others = ", ".join(f"`{name}`" for name in vector.state)
        yield f"- State of vectors: {others}."
    yield ""


if __name__ == "__main__":
    print(page(), end="")
