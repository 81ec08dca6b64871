"""The summary as a table in a terminal."""

from rich.table import Table

from thalweg.report.words import columns, summary_rows
from thalweg.studies import StudyResult

__all__ = ["summary_table"]

_RIGHT = (2, 4, 5, 7)
_RANGE = 6  # the column of good learning rates, of which there is room for the factor alone


def summary_table(result: StudyResult) -> Table:
    """One row an optimizer, best first; fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for i, column in enumerate(columns(result)):
        table.add_column(column.short, justify="right" if i in _RIGHT else "left", no_wrap=True)
    for row in summary_rows(result):
        row[_RANGE] = row[_RANGE].split(" ")[0]
        table.add_row(*row)
    return table
