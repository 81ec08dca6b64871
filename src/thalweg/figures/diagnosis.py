"""The pictures of a diagnosis: data frame in, figure out; nothing is computed here."""

import math
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import COLORS, finish, shade

__all__ = ["curves", "rates", "trials"]

BLUE, ORANGE, GREY = COLORS[0], COLORS[1], "#777777"
LINES = {"train_loss": ("training", BLUE), "validation_loss": ("validation", ORANGE)}
ROW = 44  # pixels of a trial
WIDTH = 68  # characters of a line


def curves(frame: pd.DataFrame, loss: str, metric: str, percent: bool) -> go.Figure:
    """The training as it is set: losses and metric over epochs, mean and range over seeds.

    Args:
        frame: a row a seed and epoch: ``seed, epoch, train_loss, validation_loss,
            validation_metric``.
        loss: as axes print it.
        metric: likewise, of validation data.
        percent: whether the metric is a fraction.
    """
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for column, (name, color) in LINES.items():
        _band(figure, frame, column, name, color, col=1)
    _band(figure, frame, "validation_metric", f"validation {metric}", ORANGE, col=2)
    figure.update_xaxes(title_text="epoch")
    positive = bool((frame[list(LINES)] > 0).all().all())
    figure.update_yaxes(title_text=loss, type="log" if positive else "linear", col=1)
    figure.update_yaxes(title_text=f"validation {metric}", col=2)
    if percent:
        figure.update_yaxes(tickformat=".0%", col=2)
    return finish(figure, 380).update_layout(showlegend=True)


def _band(
    figure: go.Figure, frame: pd.DataFrame, column: str, name: str, color: str, col: int
) -> None:
    by_epoch = frame.groupby("epoch")[column]
    low, mean, high = by_epoch.min(), by_epoch.mean(), by_epoch.max()
    place = {"row": 1, "col": col}
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=high.index, y=high, **edge, **place)
    figure.add_scatter(x=low.index, y=low, fill="tonexty", fillcolor=shade(color), **edge, **place)
    figure.add_scatter(
        x=mean.index,
        y=mean,
        mode="lines" if len(mean) > 1 else "markers",
        line={"color": color, "width": 2},
        name=name,
        showlegend=col == 1,
        hovertemplate=f"{name}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
        **place,
    )


def rates(frame: pd.DataFrame, lr: float, metric: str, percent: bool) -> go.Figure:
    """The metric against the learning rate, mean and range over seeds; a line at what is set.

    Args:
        frame: a row a rate: ``lr, metric, low, high``; ``diverged``, the share of runs that did.
        lr: what is set.
        metric: as axes print it.
        percent: whether it is a fraction.
    """
    mine = frame.sort_values("lr")
    figure = go.Figure()
    figure.add_scatter(
        x=mine["lr"],
        y=mine["metric"],
        error_y={
            "array": mine["high"] - mine["metric"],
            "arrayminus": mine["metric"] - mine["low"],
            "thickness": 1.2,
            "width": 3,
        },
        mode="lines+markers",
        line={"color": BLUE, "width": 1.5},
        marker={
            "size": 8,
            "color": ["white" if d > 0 else BLUE for d in mine["diverged"]],
            "line": {"color": BLUE, "width": 1.5},
        },
        customdata=mine["diverged"],
        hovertemplate="learning rate %{x:.3g}: %{y:.4g}, %{customdata:.0%} diverged<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=lr, line={"color": ORANGE, "width": 2, "dash": "dash"})
    # An annotation on a logarithmic axis stands at the logarithm.
    figure.add_annotation(
        x=math.log10(lr),
        y=1,
        xref="x",
        yref="paper",
        text="as it is set",
        showarrow=False,
        yshift=12,
    )
    figure.update_xaxes(type="log", title_text="learning rate (hollow: some runs diverged)")
    figure.update_yaxes(title_text=f"best validation {metric}")
    if percent:
        figure.update_yaxes(tickformat=".0%")
    return finish(figure, 360, legend=False)


def trials(frame: pd.DataFrame) -> go.Figure:
    """What each change that was tried gained, with its interval.

    Args:
        frame: a row a trial: ``cause, change, gain, low, high``, in shares of what can be reached.
    """
    mine = frame.iloc[::-1]
    names = ["<br>".join(wrap(change, WIDTH)) for change in mine["change"]]
    good = mine["low"] > 0
    figure = go.Figure()
    figure.add_scatter(
        x=mine["gain"],
        y=list(range(len(mine))),
        error_x={
            "array": mine["high"] - mine["gain"],
            "arrayminus": mine["gain"] - mine["low"],
            "thickness": 1.5,
            "width": 4,
            "color": GREY,
        },
        mode="markers",
        marker={"size": 10, "color": [BLUE if g else GREY for g in good]},
        customdata=mine[["change", "cause"]],
        hovertemplate="%{customdata[0]}: gains %{x:.1%} (%{customdata[1]})<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=0, line={"color": "#222222", "width": 1})
    figure.update_yaxes(
        tickvals=list(range(len(mine))), ticktext=names, range=[-0.6, len(mine) - 0.4], ticks=""
    )
    figure.update_xaxes(
        tickformat=".0%", title_text="gain, in shares of what the best training reached"
    )
    figure = finish(figure, max(200, ROW * len(mine) + 90), legend=False)
    return figure.update_layout(margin={"l": 440})
