"""The pictures of learning-rate schedules: data frame in, figure out; nothing is computed here."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import COLORS, DASHES, finish

__all__ = ["schedule_lines", "schedules"]

COLUMNS = 4
PANEL = 175  # pixels of a panel's height


def schedules(frame: pd.DataFrame, lr: float = 1.0) -> go.Figure:
    """All schedules side by side, a panel each.

    Args:
        frame: columns ``name``, ``step`` and ``factor``, as `thalweg.schedules.frame` makes them.
        lr: base learning rate.
    """
    names = list(dict.fromkeys(frame["name"]))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=min(0.06, 0.3 / rows),
        subplot_titles=names,
    )
    for i, name in enumerate(names):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        _line(figure, frame, name, lr, {"color": COLORS[0], "width": 1.8}, **place)
        # A column's last panel has the numbers of the steps, also where the last row is shorter.
        if i + columns >= len(names):
            figure.update_xaxes(title_text="step", title_standoff=4, showticklabels=True, **place)
    figure.update_yaxes(title_text=_quantity(lr), title_standoff=4, col=1)
    figure.update_yaxes(rangemode="tozero")
    return finish(figure, rows * PANEL + 90, legend=False)


def schedule_lines(frame: pd.DataFrame, lr: float = 1.0) -> go.Figure:
    """A few schedules in one panel, a line each.

    Args:
        frame: as `schedules` takes it.
        lr: base learning rate.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(frame["name"]))
    for i, name in enumerate(names):
        # The dash changes from line to line: where two run together, both are seen.
        line = {"color": COLORS[i % len(COLORS)], "width": 2, "dash": DASHES[i % len(DASHES)]}
        _line(figure, frame, name, lr, line)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text=_quantity(lr), rangemode="tozero")
    return finish(figure, 480).update_layout(showlegend=True)


def _line(
    figure: go.Figure,
    frame: pd.DataFrame,
    name: str,
    lr: float,
    line: dict[str, object],
    **place: int,
) -> None:
    mine = frame[frame["name"] == name]
    figure.add_scatter(
        x=mine["step"],
        y=lr * mine["factor"],
        mode="lines",
        line={**line, "shape": "hv"},  # a step has one rate
        name=name,
        showlegend=not place,
        hovertemplate=f"{name}, step %{{x}}: %{{y:.4g}}<extra></extra>",
        **place,
    )


def _quantity(lr: float) -> str:
    return "learning rate" if lr != 1 else "factor on the rate"
