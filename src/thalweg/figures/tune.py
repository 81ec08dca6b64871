"""The pictures of learning rates and batch sizes: data in, figure out; nothing is computed here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import DASHES, SYMBOLS, finish, shade
from thalweg.numbers import number

__all__ = ["batch_sizes", "noise", "range_test", "rates"]

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d55e00", "#009e73", "#c1121f", "#777777"
PANELS = 4  # side by side
# From too small to too large, dark to light blue and on to red.
SCALE = ("#08306b", "#4292c6", "#009e73", "#e69f00", "#c1121f")


def range_test(
    losses: pd.DataFrame,
    metrics: pd.DataFrame,
    marks: Mapping[str, float],
    suggestion: float | None,
    bounds: tuple[float, float] | None,
    diverged_at: float | None,
    metric: str,
    percent: bool,
) -> go.Figure:
    """Loss, and metric if there is one, while the learning rate rises.

    Args:
        losses: a row a rate: ``lr, loss, low, high``, smoothed mean and range over runs.
        metrics: a row a rate: ``lr, metric, low, high``, likewise; empty for none.
        marks: rates that the curve points at, by their names.
        suggestion: the rate suggested, if any.
        bounds: of a cyclical schedule, if any.
        diverged_at: where half of the runs had diverged, if they had.
        metric: name of the metric.
        percent: whether it is a fraction, to be shown in per cent.
    """
    rows = 1 if metrics.empty else 2
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    _band(figure, losses, "loss", 1, BLUE, "training loss, smoothed; range over runs", 1)
    if rows == 2:
        _band(figure, metrics, "metric", 100 if percent else 1, GREEN, f"validation {metric}", 2)
        figure.update_yaxes(title_text=f"validation {metric}", row=2)
        figure.update_yaxes(ticksuffix=" %" if percent else "", row=2)
    lines = [
        *((name, at, GREY, DASHES[1 + i % 3]) for i, (name, at) in enumerate(marks.items())),
        *([("suggested", suggestion, ORANGE, "solid")] if suggestion else []),
        *([("half of the runs diverged", diverged_at, RED, "dot")] if diverged_at else []),
    ]
    for name, at, color, dash in lines:
        figure.add_vline(x=at, line={"color": color, "dash": dash, "width": 1.6})
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": color, "dash": dash, "width": 1.6},
            name=f"{name}: {number(at)}",
        )
    if bounds is not None:
        figure.add_vrect(
            x0=bounds[0], x1=bounds[1], fillcolor=shade(ORANGE), line_width=0, layer="below"
        )
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "square", "size": 12, "color": shade(ORANGE)},
            name=f"bounds of a cycle: {number(bounds[0])} to {number(bounds[1])}",
        )
    figure.update_xaxes(type="log", dtick=1, exponentformat="power")
    figure.update_xaxes(title_text="learning rate", row=rows)
    # What is far above the start is divergence, and would crush what matters.
    start, bottom = losses["loss"].iloc[0], losses["loss"].min()
    figure.update_yaxes(
        title_text="training loss",
        range=[bottom - 0.05 * (start - bottom), start + 0.6 * (start - bottom)]
        if start > bottom
        else None,
        row=1,
    )
    return finish(figure, 320 * rows + 110)


def _band(
    figure: go.Figure, frame: pd.DataFrame, of: str, scale: float, color: str, name: str, row: int
) -> None:
    known = frame[frame[of].notna()]
    x = known["lr"]
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*scale * known["high"], *(scale * known["low"])[::-1]],
        fill="toself",
        fillcolor=shade(color),
        mode="none",
        hoverinfo="skip",
        showlegend=False,
        row=row,
        col=1,
    )
    figure.add_scatter(
        x=x,
        y=scale * known[of],
        mode="lines",
        line={"color": color, "width": 2},
        name=name,
        hovertemplate=f"learning rate %{{x:.3g}}<br>{name} %{{y:.4g}}<extra></extra>",
        row=row,
        col=1,
    )


def rates(frame: pd.DataFrame, quantity: str = "training loss") -> go.Figure:
    """Too small, right, too large: training at a few rates, a panel an optimizer.

    Args:
        frame: a row an optimizer, rate and step: ``optimizer, lr, verdict, step, loss, low,
            high``, mean and range over seeds; ``verdict`` in words, "too small".
        quantity: what the axis calls it.
    """
    names = list(dict.fromkeys(frame["optimizer"]))
    columns = min(PANELS, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=190 / (rows * 400 - 155) if rows > 1 else 0,  # a legend fits in
        subplot_titles=names if len(names) > 1 else None,
    )
    for k, name in enumerate(names):
        mine = frame[frame["optimizer"] == name]
        every = sorted(set(mine["lr"]))
        place = {"row": k // columns + 1, "col": k % columns + 1}
        for i, lr in enumerate(every):
            one = mine[(mine["lr"] == lr) & mine["loss"].notna()]
            words = mine[mine["lr"] == lr]["verdict"].iloc[0]
            figure.add_scatter(
                x=one["step"] if len(one) else [None],
                y=one["loss"] if len(one) else [None],
                error_y={
                    "array": one["high"] - one["loss"],
                    "arrayminus": one["loss"] - one["low"],
                    "thickness": 0.8,
                    "width": 2,
                },
                mode="lines+markers",
                line={"color": _shade_of(i, len(every)), "width": 1.8},
                marker={"size": 5, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                name=f"{number(lr)}: {words}",
                legend=f"legend{k + 1 if k else ''}",
                hovertemplate=f"{name}, {number(lr)}, step %{{x}}<br>%{{y:.4g}}<extra></extra>",
                **place,
            )
        figure.update_xaxes(title_text="step", title_standoff=4, **place)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title_text=quantity, col=1)
    finish(figure, rows * 400 + 40)
    for k in range(len(names)):
        axes = str(k + 1) if k else ""
        left = figure.layout[f"xaxis{axes}"].domain[0]
        top = figure.layout[f"yaxis{axes}"].domain[1]
        legend = {
            "orientation": "v",
            "x": left,
            "xanchor": "left",
            "y": top + 26 / (rows * 400 - 155),
            "yref": "paper",
            "yanchor": "bottom",
            "font": {"size": 11},
        }
        figure.update_layout({f"legend{axes}": legend})
    return figure.update_layout(margin={"t": 140})


def _shade_of(i: int, count: int) -> str:
    return SCALE[round(i * (len(SCALE) - 1) / max(1, count - 1))]


def noise(
    curve: pd.DataFrame, value: float, interval: tuple[float, float], batch_size: int
) -> go.Figure:
    """The gradient noise scale as training goes on.

    Args:
        curve: a row a measurement: ``epoch, value``, in samples.
        value: of the whole stretch.
        interval: of it, low and high; NaN for none.
        batch_size: that training went on with.
    """
    figure = go.Figure()
    known = curve[curve["value"] > 0]
    figure.add_scatter(
        x=known["epoch"],
        y=known["value"],
        mode="markers",
        marker={"color": BLUE, "size": 6},
        name="at one moment, mean over seeds",
        hovertemplate="epoch %{x:.2f}<br>%{y:.3g} samples<extra></extra>",
    )
    if math.isfinite(interval[0]):
        figure.add_hrect(
            y0=interval[0], y1=interval[1], fillcolor=shade(ORANGE), line_width=0, layer="below"
        )
    for name, at, color, dash in (
        ("all of it, with its interval", value, ORANGE, "solid"),
        ("batch size of the training", batch_size, GREY, "dash"),
    ):
        figure.add_hline(y=at, line={"color": color, "dash": dash, "width": 1.8})
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line={"color": color, "dash": dash}, name=name
        )
    figure.update_xaxes(title_text="epoch", rangemode="tozero")
    figure.update_yaxes(
        title_text="gradient noise scale, samples",
        type="log",
        tickmode="array",
        tickvals=[m * 10.0**k for k in range(-2, 9) for m in (1, 2, 5)],
        ticktext=[number(m * 10.0**k) for k in range(-2, 9) for m in (1, 2, 5)],
    )
    return finish(figure, 380).update_layout(showlegend=True)


def batch_sizes(
    table: pd.DataFrame,
    fitted: pd.DataFrame,
    critical: Sequence[float],
    noise_scale: Sequence[float],
    recommended: int,
    metric: str,
    percent: bool,
) -> go.Figure:
    """Cost, result and learning rate against batch size.

    Args:
        table: as `thalweg.tune.BatchSizes` documents it.
        fitted: ``batch_size, steps`` of the curve of steps against samples; empty for none.
        critical: the critical batch size with its interval: value, low, high; NaN for none.
        noise_scale: the gradient noise scale, likewise.
        recommended: batch size to use.
        metric: name of the metric.
        percent: whether it is a fraction, to be shown in per cent.
    """
    figure = make_subplots(
        rows=2,
        cols=2,
        horizontal_spacing=0.1,
        vertical_spacing=0.15,
        subplot_titles=(
            "steps to the target",
            "seconds to the target, one model alone",
            f"test {metric}, 95 % interval",
            "learning rate, tuned and by the rules",
        ),
    )
    x = table["batch_size"]
    _points(figure, table, "steps_to_target", "measured, median over seeds", BLUE, 1, 1)
    if len(fitted):
        figure.add_scatter(
            x=fitted["batch_size"],
            y=fitted["steps"],
            mode="lines",
            line={"color": BLUE, "dash": "dot", "width": 1.4},
            name="S_min (1 + B_crit / B)",
            row=1,
            col=1,
        )
    for name, (at, low, high), color in (
        ("critical batch size, from steps", critical, GREEN),
        ("gradient noise scale, within steps", noise_scale, ORANGE),
    ):
        if not math.isfinite(at):
            continue
        if math.isfinite(low):
            figure.add_vrect(
                x0=low, x1=high, fillcolor=shade(color), line_width=0, layer="below", row=1, col=1
            )
        figure.add_vline(x=at, line={"color": color, "width": 1.6}, row=1, col=1)
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": color, "width": 1.6},
            name=f"{name}: {number(at)}",
        )
    _points(figure, table, "seconds_to_target", "", BLUE, 1, 2)
    scale = 100 if percent else 1
    for name, of, ends, color, dash in (
        ("learning rate tuned", "test_metric", ("low", "high"), BLUE, "solid"),
        ("linear rule", "linear_metric", ("linear_low", "linear_high"), RED, "dash"),
        ("square-root rule", "sqrt_metric", ("sqrt_low", "sqrt_high"), GREY, "dot"),
    ):
        figure.add_scatter(
            x=x,
            y=scale * table[of],
            error_y={
                "array": scale * (table[ends[1]] - table[of]),
                "arrayminus": scale * (table[of] - table[ends[0]]),
                "thickness": 1,
                "width": 3,
            },
            mode="lines+markers",
            line={"color": color, "dash": dash, "width": 1.6},
            name=name,
            row=2,
            col=1,
        )
        rate = {"test_metric": "lr", "linear_metric": "linear_lr", "sqrt_metric": "sqrt_lr"}[of]
        figure.add_scatter(
            x=x,
            y=table[rate],
            mode="lines+markers" if rate == "lr" else "lines",
            line={"color": color, "dash": dash, "width": 1.6},
            showlegend=False,
            hovertemplate=f"batch size %{{x}}<br>{name}: %{{y:.3g}}<extra></extra>",
            row=2,
            col=2,
        )
    for row, column in ((1, 1), (1, 2), (2, 1), (2, 2)):
        figure.add_vline(
            x=recommended, line={"color": "#111", "dash": "dash", "width": 1}, row=row, col=column
        )
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        line={"color": "#111", "dash": "dash", "width": 1},
        name=f"recommended: {recommended:,}",
    )
    ticks: dict[str, Any] = {"tickmode": "array", "tickvals": x, "ticktext": [f"{v:,}" for v in x]}
    figure.update_xaxes(type="log", title_text="batch size", **ticks)
    for row, column in ((1, 1), (1, 2), (2, 2)):
        figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=row, col=column)
    figure.update_yaxes(ticksuffix=" %" if percent else "", row=2, col=1)
    finish(figure, 820)
    return figure.update_layout(margin={"t": 130})


def _points(
    figure: go.Figure, table: pd.DataFrame, of: str, name: str, color: str, row: int, column: int
) -> None:
    figure.add_scatter(
        x=table["batch_size"],
        y=table[of],
        mode="lines+markers" if column == 2 else "markers",
        marker={"color": color, "size": 8},
        line={"color": color, "width": 1.6},
        name=name,
        showlegend=bool(name),
        hovertemplate="batch size %{x}<br>%{y:.4g}<extra></extra>",
        row=row,
        col=column,
    )
