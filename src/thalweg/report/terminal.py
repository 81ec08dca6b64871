"""The summary as a table in a terminal."""

from collections.abc import Container, Sequence
from typing import Literal

from rich.table import Table
from rich.text import Text

from thalweg.report.words import Column, columns, effect_columns, effect_rows, summary_rows
from thalweg.studies import Factor, StudyResult

__all__ = ["effect_table", "summary_table"]

_RANGE = "good lr\nrange"
_LEFT = 3  # the first columns of the summary that are words, but for the learning rate
# Columns that give way to long names, the first of them first.
_SUMMARY_YIELDS = (_RANGE, "seconds to\ntarget", "epochs to\ntarget")
_EFFECT_YIELDS = (
    "best\nlr", "loss at\nstart", "diverged\nruns", "epochs to\ntarget", "seconds to\ntarget",
    "seconds\na run", "parameters", "gradient\nnorm",
)  # fmt: skip


def summary_table(result: StudyResult, width: int = 100) -> Table:
    """One row an arm, best first.

    Args:
        result: of the study.
        width: of the terminal; with optimizers alone 80 are enough.
    """
    heads, rows = columns(result), summary_rows(result)
    places = _places(heads)
    for row in rows:  # there is room for the factor alone
        row[places[_RANGE]] = row[places[_RANGE]].split(" ")[0]
    yields = [places[n] for n in _SUMMARY_YIELDS if n in places and result.spec.varied]
    right = [i for n, i in places.items() if n == "best\nlr" or (i > _LEFT and n != _RANGE)]
    return _table(heads, rows, right, yields, width)


def _places(heads: Sequence[Column]) -> dict[str, int]:
    return {head.short: i for i, head in enumerate(heads)}


def effect_table(result: StudyResult, factor: Factor, width: int = 100) -> Table:
    """What a factor does: one row a context and level.

    Args:
        result: of the study.
        factor: one that it varies.
        width: of the terminal.
    """
    heads = effect_columns(result, factor)
    places = _places(heads)
    yields = [places[name] for name in _EFFECT_YIELDS if name in places]
    return _table(heads, effect_rows(result, factor), range(4, len(heads)), yields, width)


def _table(
    heads: Sequence[Column],
    rows: Sequence[Sequence[str]],
    right: Container[int],
    yields: Sequence[int],
    width: int,
) -> Table:
    """A table of the columns that there is room for."""
    widths = [
        max(len(line) for text in (head.short, *column) for line in text.split("\n"))
        for head, column in zip(heads, zip(*rows, strict=True), strict=True)
    ]
    shown = list(range(len(heads)))
    for i in yields:
        if sum(widths[k] + 1 for k in shown) - 1 > width and i in shown:
            shown.remove(i)
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for i in shown:
        justify: Literal["left", "right"] = "right" if i in right else "left"
        table.add_column(Text(heads[i].short), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in shown))
    return table
