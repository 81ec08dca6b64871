"""What a person reads: the table in the terminal, the HTML report, the notebook's view."""

from thalweg.report.html import figures, result_html, write
from thalweg.report.terminal import effect_table, summary_table

__all__ = ["effect_table", "figures", "result_html", "summary_table", "write"]
