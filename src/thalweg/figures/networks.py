"""The pictures of the loss around a network: data in, figure out; nothing is computed here."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from thalweg.figures.style import finish
from thalweg.numbers import number

__all__ = ["interpolation", "loss_contour", "loss_surface"]

Numbers: TypeAlias = NDArray[np.float64]

BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#777777", "#111111"
PATH = "#e6007e"  # on all of the colours below it
SCALE = "Viridis"
SETS = (("train_loss", "training"), ("validation_loss", "validation"))


def loss_contour(
    grid: pd.DataFrame, marks: pd.DataFrame, labels: Sequence[str], loss: str
) -> go.Figure:
    """Training and validation loss on a plane, one scale of colours for both.

    Args:
        grid: a row a point: ``alpha, beta, train_loss, validation_loss``.
        marks: points of interest: ``name, alpha, beta, train_loss``; with ``step`` they
            are a path.
        labels: what the two axes are called.
        loss: what the colours are called.
    """
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[f"{name} {loss}" for _, name in SETS],
    )
    both = grid[[column for column, _ in SETS]].to_numpy()
    height = _height(both)
    low, high = _ends(height(both))
    for k, (column, name) in enumerate(SETS, 1):
        alpha, beta, values = _mesh(grid, column)
        figure.add_contour(
            x=alpha,
            y=beta,
            z=height(values),
            customdata=values,
            zmin=low,
            zmax=high,
            contours={"start": low, "end": high, "size": (high - low) / 16, "coloring": "heatmap"},
            line={"width": 0.6, "color": "rgba(255,255,255,0.6)"},
            colorscale=SCALE,
            colorbar={
                "title": loss,
                **(_ticks(low, high) if height is _logs else {}),
            },
            showscale=k == 2,
            name=name,
            hovertemplate=f"{name} %{{customdata:.4g}}<br>(%{{x:.3g}}, %{{y:.3g}})<extra></extra>",
            row=1,
            col=k,
        )
        for trace in _marked(marks, k == 1):
            figure.add_trace(trace, row=1, col=k)
    figure.update_xaxes(title_text=labels[0], range=[grid["alpha"].min(), grid["alpha"].max()])
    figure.update_yaxes(range=[grid["beta"].min(), grid["beta"].max()])
    figure.update_yaxes(title_text=labels[1], col=1)
    return finish(figure, 520).update_layout(showlegend=True)


def _marked(marks: pd.DataFrame, legend: bool) -> list[go.Scatter]:
    """A training path with both its ends, or named points."""
    if "step" not in marks:
        return [
            go.Scatter(
                x=[row["alpha"]],
                y=[row["beta"]],
                mode="markers",
                marker=_mark(i),
                name=row["name"],
                showlegend=legend,
                legendgroup=row["name"],
                hovertemplate=f"{row['name']}<extra></extra>",
            )
            for i, (_, row) in enumerate(marks.iterrows())
        ]
    way = go.Scatter(
        x=marks["alpha"],
        y=marks["beta"],
        mode="lines+markers",
        line={"color": PATH, "width": 2},
        marker={"size": 4, "color": PATH},
        customdata=marks[["step", "own_loss"]],
        name="training path",
        showlegend=legend,
        hovertemplate="step %{customdata[0]}<br>own training loss %{customdata[1]:.4g}"
        "<extra></extra>",
    )
    ends = [
        go.Scatter(
            x=[marks["alpha"].iloc[i]],
            y=[marks["beta"].iloc[i]],
            mode="markers",
            marker=_mark(k),
            name=name,
            showlegend=legend,
            hoverinfo="skip",
        )
        for k, (i, name) in enumerate(((0, "start"), (-1, "end")))
    ]
    return [way, *ends]


def _mark(i: int) -> dict[str, Any]:
    symbol = ("circle", "star", "diamond")[i % 3]
    return {
        "symbol": symbol,
        "size": 13,
        "color": "white",
        "line": {"color": INK, "width": 1.5},
    }


def loss_surface(
    grid: pd.DataFrame, marks: pd.DataFrame, labels: Sequence[str], loss: str
) -> go.Figure:
    """Training loss over a plane, to be turned with the mouse.

    Args:
        grid: a row a point: ``alpha, beta, train_loss``.
        marks: points of interest, as `loss_contour` takes them.
        labels: what the two axes are called.
        loss: what the height is called.
    """
    alpha, beta, values = _mesh(grid, "train_loss")
    height = _height(values)
    low, high = _ends(height(values))
    lift = 0.01 * (high - low)  # so that lines are not half in the ground
    heights = height(marks["train_loss"].to_numpy()) + lift
    figure = go.Figure(
        go.Surface(
            x=alpha,
            y=beta,
            z=height(values),
            customdata=values,
            cmin=low,
            cmax=high,
            colorscale=SCALE,
            showscale=False,
            contours={"z": {"show": True, "color": "rgba(255,255,255,0.5)", "width": 1,
                            "start": low, "end": high, "size": (high - low) / 16}},
            hovertemplate="%{customdata:.4g}<br>(%{x:.3g}, %{y:.3g})<extra></extra>",
        )
    )  # fmt: skip
    path = "step" in marks
    figure.add_scatter3d(
        x=marks["alpha"],
        y=marks["beta"],
        z=heights,
        mode="lines+markers" if path else "markers",
        line={"color": PATH, "width": 6},
        marker={"size": 2.5 if path else 6, "color": PATH},
        name="training path" if path else ", ".join(marks["name"]),
        text=marks["name"],
        hovertemplate="%{text}<extra></extra>",
    )
    if path:
        figure.add_scatter3d(
            x=marks["alpha"].iloc[[0, -1]],
            y=marks["beta"].iloc[[0, -1]],
            z=heights[[0, -1]],
            mode="markers+text",
            marker={"size": 7, "color": "white", "line": {"color": INK, "width": 1.5}},
            text=["start", "end"],
            textfont={"size": 14, "color": INK},
            hoverinfo="skip",
            showlegend=False,
        )
    finish(figure, 620)
    axis = {"backgroundcolor": "white", "gridcolor": "#dddddd", "title_font": {"size": 12}}
    return figure.update_layout(
        showlegend=True,
        scene={
            "xaxis": {"title": {"text": labels[0]}, **axis},
            "yaxis": {"title": {"text": labels[1]}, **axis},
            "zaxis": {
                "title": {"text": f"training {loss}"},
                **(_ticks(low, high) if height is _logs else {}),
                **axis,
            },
            "aspectmode": "manual",
            "aspectratio": {"x": 1.2, "y": 1.2, "z": 0.75},
            "camera": {
                "eye": {"x": 1.5, "y": -1.5, "z": 1.15},
                "center": {"x": 0, "y": 0, "z": -0.15},
            },
        },
    )


def interpolation(
    grid: pd.DataFrame, marks: pd.DataFrame, label: str, loss: str, metric: str, percent: bool
) -> go.Figure:
    """Loss and metric along a line, training and validation.

    Args:
        grid: a row a point: ``alpha, train_loss, train_metric, validation_loss,
            validation_metric``.
        marks: points of interest: ``name, alpha``.
        label: what the line is called.
        loss: name of the loss.
        metric: name of the metric.
        percent: whether it is a fraction, to be shown in per cent.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    for row, (what, scale) in enumerate((("loss", 1), ("metric", 100 if percent else 1)), 1):
        for part, color, dash in (("train", BLUE, "solid"), ("validation", ORANGE, "dash")):
            name = "training" if part == "train" else "validation"
            figure.add_scatter(
                x=grid["alpha"],
                y=scale * grid[f"{part}_{what}"],
                mode="lines",
                line={"color": color, "dash": dash, "width": 2},
                name=name,
                showlegend=row == 1,
                hovertemplate=f"{name} %{{y:.4g}} at %{{x:.3g}}<extra></extra>",
                row=row,
                col=1,
            )
    for _, mark in marks.iterrows():
        figure.add_vline(x=mark["alpha"], line={"color": GREY, "dash": "dot", "width": 1.4})
        figure.add_annotation(
            x=mark["alpha"],
            y=1,
            yref="y domain",
            yanchor="bottom",
            text=mark["name"],
            showarrow=False,
        )
    figure.update_xaxes(title_text=label, row=2)
    figure.update_yaxes(title_standoff=14)
    figure.update_yaxes(title_text=loss, rangemode="tozero", row=1)
    figure.update_yaxes(title_text=metric, ticksuffix=" %" if percent else "", row=2)
    return finish(figure, 520).update_layout(showlegend=True)


def _mesh(grid: pd.DataFrame, column: str) -> tuple[Numbers, Numbers, Numbers]:
    """Both axes, and a column as rows of ``beta``."""
    table = grid.pivot_table(column, "beta", "alpha", dropna=False)
    return table.columns.to_numpy(), table.index.to_numpy(), table.to_numpy()


def _height(values: Numbers) -> Callable[[Numbers], Numbers]:
    """What is drawn of losses: their logarithms, as they range over powers of ten on a plane.

    The losses themselves where a logarithm has nothing to say: some are negative, or all zero.
    """
    finite = values[np.isfinite(values)]
    return _logs if finite.min() >= 0 and finite.max() > 0 else _as_it_is


def _logs(values: Numbers) -> Numbers:
    """A hole where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Numbers = np.where(values > 0, np.log10(values), np.nan)
    return logs


def _as_it_is(values: Numbers) -> Numbers:
    return values


def _ends(heights: Numbers) -> tuple[float, float]:
    finite = heights[np.isfinite(heights)]
    return float(finite.min()), max(float(finite.max()), float(finite.min()) + 1e-6)


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Round numbers between two powers of ten: 1, 2 and 5 of each, or 1 alone of many."""
    heads = (1, 2, 5) if high - low < 4 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    inside = [h * 10.0**p for p in powers for h in heads if low <= math.log10(h) + p <= high]
    ticks = inside or [10**low, 10**high]
    return {"tickvals": np.log10(ticks), "ticktext": list(map(number, ticks))}
