"""The pictures of functions and of optimizers on them: data in, figure out; nothing is computed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import DASHES, SYMBOLS, finish
from thalweg.numbers import number

__all__ = ["descent_on_line", "descent_on_plane", "progress", "twins"]

MARKS = {
    "minimum": ("triangle-down", "#111111"),
    "maximum": ("triangle-up", "#111111"),
    "saddle": ("x", "#c1121f"),
    "flat": ("circle-open", "#111111"),
}
MARKS_3D = {"minimum": "circle", "maximum": "square", "saddle": "x", "flat": "circle-open"}
LABELLED = 9  # points with a label each; of more the reader asks the pointer
IN_3D = 40  # points
FRAMES = 50
LEVELS = 16
LOW, HIGH = "#b9c6d3", "#fdfdfd"  # of the ground, which paths have to stand out against
BLUE, ORANGE = "#0072b2", "#d55e00"


def descent_on_line(
    curve: pd.DataFrame, points: pd.DataFrame, paths: pd.DataFrame, colors: Mapping[str, str]
) -> go.Figure:
    """A function of one variable, its critical points, and paths that grow with the steps.

    Args:
        curve: ``x, value``.
        points: critical points, ``x, value, kind``.
        paths: ``optimizer, start, step, x, value``.
        colors: of each optimizer.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=curve["x"],
        y=curve["value"],
        mode="lines",
        line={"color": "#8a949e", "width": 2.5},
        name="the function",
        showlegend=False,
        hovertemplate="x %{x:.4g}<br>%{y:.5g}<extra></extra>",
    )
    ends = curve["x"].min(), curve["x"].max()
    steps = _frames_at(paths, paths["x"].between(*ends))
    growing = _add_paths(figure, paths, colors, ("x", "value"), steps)
    _animate(figure, growing, steps)
    _points(figure, points, "value")
    seen = curve["value"].dropna()
    high, low = float(seen.max()), float(seen.min())
    edge = max(high - low, 1e-12)
    below = 0.25 if "minimum" in set(points["kind"]) else 0.12  # room for a label
    figure.update_xaxes(title_text="x", range=ends)
    figure.update_yaxes(title_text="value", range=[low - below * edge, high + 0.12 * edge])
    finish(figure, 620)
    return figure.update_layout(margin={"b": 140, "t": 60})


def descent_on_plane(
    ground: pd.DataFrame, points: pd.DataFrame, paths: pd.DataFrame, colors: Mapping[str, str]
) -> go.Figure:
    """A function of two variables as contours and as a surface, and paths that grow on both.

    Lines of equal height are closer to each other, in height, the lower they are.

    Args:
        ground: values on a grid, by ``x``, then ``y``: ``x, y, value, share``; the share of the
            grid that is lower.
        points: critical points, ``x, y, value, kind``.
        paths: ``optimizer, start, step, x, y, value``.
        colors: of each optimizer.
    """
    figure = make_subplots(
        rows=1,
        cols=2,
        specs=[[{"type": "xy"}, {"type": "scene"}]],
        column_widths=[0.5, 0.5],
        horizontal_spacing=0.04,
    )
    x, y = ground["x"].unique(), ground["y"].unique()
    z = ground["value"].to_numpy().reshape(len(x), len(y)).T
    shades = np.sqrt(ground["share"].to_numpy().reshape(len(x), len(y)).T)
    scale = [[0.0, LOW], [1.0, HIGH]]
    figure.add_contour(
        x=x,
        y=y,
        z=shades,
        customdata=z,
        colorscale=scale,
        showscale=False,
        contours={"start": 0, "end": 1, "size": 1 / LEVELS},
        line={"color": "#8795a3", "width": 0.7},
        hovertemplate="x %{x:.4g}, y %{y:.4g}<br>%{customdata:.5g}<extra></extra>",
        name="",
        row=1,
        col=1,
    )
    top = _top(ground, paths)
    figure.add_surface(
        x=x,
        y=y,
        z=np.minimum(z, top),
        surfacecolor=shades,
        colorscale=scale,
        showscale=False,
        opacity=0.92,
        contours={"z": _heights(ground["value"], top)},
        hovertemplate="x %{x:.4g}, y %{y:.4g}<br>%{z:.5g}<extra></extra>",
        name="",
        row=1,
        col=2,
    )
    if len(points) <= IN_3D:
        for kind, mine in points[points["value"] <= top].groupby("kind", sort=False):
            figure.add_scatter3d(
                x=mine["x"],
                y=mine["y"],
                z=mine["value"],
                mode="markers",
                marker={
                    "symbol": MARKS_3D[str(kind)],
                    "color": MARKS[str(kind)][1],
                    "size": 4,
                },
                name=str(kind),
                showlegend=False,
                hovertemplate=f"{kind}<br>x %{{x:.4g}}, y %{{y:.4g}}<br>%{{z:.5g}}<extra></extra>",
                row=1,
                col=2,
            )
    ends = ground["x"].min(), ground["x"].max(), ground["y"].min(), ground["y"].max()
    within = paths["x"].between(*ends[:2]) & paths["y"].between(*ends[2:])
    steps = _frames_at(paths, within)
    growing = _add_paths(figure, paths, colors, ("x", "y"), steps, row=1, col=1)
    _points(figure, points, "y", row=1, col=1)
    above = paths[within & (paths["value"] <= top)]
    # A little above the surface, which would hide half of a line that lies in it.
    lift = 0.01 * (top - float(ground["value"].min()))
    above = above.assign(value=above["value"] + lift)
    growing += _add_paths(figure, above, colors, ("x", "y", "value"), steps, row=1, col=2)
    _animate(figure, growing, steps)
    figure.update_xaxes(title_text="x", range=ends[:2])
    figure.update_yaxes(title_text="y", range=ends[2:], title_standoff=2)
    finish(figure, 680)
    axis = {"backgroundcolor": "white", "gridcolor": "#e6e6e6", "title_font": {"size": 12}}
    axis |= {"tickfont": {"size": 10}}
    figure.update_layout(
        margin={"b": 140, "l": 55, "r": 5, "t": 60},
        scene={
            "xaxis": {**axis, "title": "x", "range": ends[:2]},
            "yaxis": {**axis, "title": "y", "range": ends[2:]},
            "zaxis": {**axis, "title": "value"},
            "aspectratio": {"x": 1, "y": 1, "z": 0.75},
            "camera": {"eye": {"x": -1.05, "y": -1.34, "z": 1.5}},
        },
    )
    return figure


def _top(ground: pd.DataFrame, paths: pd.DataFrame) -> float:
    """Height at which the surface is cut off, so that what is above does not crush the rest."""
    low, high = float(ground["value"].min()), float(ground["value"].max())
    usual = float(ground["value"].quantile(0.6))
    starts = float(paths[paths["step"] == 0]["value"].max())
    needed = max(usual, starts) - low
    return high if high - low <= 4 * needed else low + 2 * needed


def _heights(values: pd.Series, top: float) -> dict[str, Any]:
    """Lines of equal height; plotly fills what lies between them where values are missing."""
    low = float(values.min())
    if values.isna().any() or not top > low:
        return {"show": False}
    size = (top - low) / LEVELS
    lines = {"start": low + size / 2, "end": top - size / 2, "size": size}
    return {"show": True, **lines, "color": "#8795a3", "width": 1}


def _points(figure: go.Figure, points: pd.DataFrame, upright: str, **place: int) -> None:
    labels = len(points) <= LABELLED
    for kind, mine in points.groupby("kind", sort=False):
        symbol, color = MARKS[str(kind)]
        figure.add_scatter(
            x=mine["x"],
            y=mine[upright],
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 11 if labels else 7,
                "color": color,
                "line": {"color": color if "open" in symbol else "white", "width": 1},
            },
            name=str(kind),
            customdata=mine["value"],
            hovertemplate=f"{kind}<br>x %{{x:.5g}}{', y %{y:.5g}' if upright == 'y' else ''}"
            "<br>%{customdata:.5g}<extra></extra>",
            **place,
        )
    for point in points.itertuples() if labels else ():
        figure.add_annotation(
            x=point.x,
            y=getattr(point, upright),
            text=f"{point.kind}<br>{_where(point, upright)}",
            ax=0,
            ay=-38 if point.kind == "maximum" else 42,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor="#555555",
            bgcolor="rgba(255, 255, 255, 0.75)",
            font={"size": 11},
            **place,
        )


def _where(point: Any, upright: str) -> str:
    """What its axes do not tell."""
    value = number(_clean(point.value))
    return value if upright == "y" else f"x = {number(_clean(point.x))}, value {value}"


def _clean(value: float) -> float:
    return 0.0 if abs(value) < 1e-12 else value


def _frames_at(paths: pd.DataFrame, within: pd.Series) -> list[int]:
    """Steps of the animation: each at first, then ever fewer, as less and less happens.

    Args:
        paths: their steps.
        within: which of them are in the picture; the one that leads out of it is shown, too.
    """
    steps = paths["step"]
    last = min(int(steps.max()), int(steps[within].max()) + 1) if within.any() else 1
    if last <= FRAMES:
        return list(range(last + 1))
    shown = np.unique(np.round(np.geomspace(1, last, FRAMES)).astype(int))
    return [0, *shown.tolist()]


def _add_paths(
    figure: go.Figure,
    paths: pd.DataFrame,
    colors: Mapping[str, str],
    columns: Sequence[str],
    steps: Sequence[int],
    **place: int,
) -> list[tuple[int, pd.DataFrame, tuple[str, ...]]]:
    """All paths, whole; the trace of each, with its rows and which columns are its coordinates."""
    found = []
    deep = len(columns) == 3
    places = list(colors)
    through = np.round(np.geomspace(1, max(1, *steps), 160)).astype(int)
    drawn = {*steps, *through.tolist()}
    for (label, start), mine in paths.groupby(["optimizer", "start"], sort=False):
        i = places.index(label)
        mine = mine[mine["step"].isin(drawn) | (mine["step"] == mine["step"].max())]
        same = [name for name in places[:i] if colors[name] == colors[label]]
        dash = DASHES[len(same) % len(DASHES)]
        line = {"color": colors[label], "width": 5 if deep else 2.2, "dash": dash}
        marker = {"color": colors[label], "size": 3 if deep else 5}
        if not deep:
            marker["symbol"] = SYMBOLS[i % len(SYMBOLS)]
        trace = (go.Scatter3d if deep else go.Scatter)(
            **dict(zip("xyz", (mine[c] for c in columns), strict=False)),
            mode="lines+markers",
            line=line,
            marker=marker,
            name=str(label),
            legendgroup=str(label),
            showlegend=not deep and start == 0,
            customdata=mine[["step", "value"]],
            hovertemplate=f"{label}<br>step %{{customdata[0]}}<br>value %{{customdata[1]:.5g}}"
            "<extra></extra>",
        )
        figure.add_trace(trace, **place)
        found.append((len(figure.data) - 1, mine, tuple(columns)))
    return found


def _animate(
    figure: go.Figure,
    growing: Sequence[tuple[int, pd.DataFrame, tuple[str, ...]]],
    steps: Sequence[int],
) -> None:
    frames = []
    for step in steps:
        data = []
        for _, rows, columns in growing:
            so_far = rows[rows["step"] <= step]
            kind = go.Scatter3d if len(columns) == 3 else go.Scatter
            values = dict(zip("xyz", (so_far[c] for c in columns), strict=False))
            data.append(kind(**values, customdata=so_far[["step", "value"]]))
        frames.append(go.Frame(data=data, traces=[trace for trace, *_ in growing], name=str(step)))
    figure.frames = frames
    at_once = {"frame": {"duration": 0, "redraw": True}, "mode": "immediate"}
    play = {"frame": {"duration": 90, "redraw": True}, "fromcurrent": True, "mode": "immediate"}
    play |= {"transition": {"duration": 0}}
    figure.update_layout(
        sliders=[
            {
                "active": len(steps) - 1,
                "currentvalue": {"prefix": "step ", "font": {"size": 13}},
                "pad": {"t": 45, "l": 20},
                "x": 0.1,
                "len": 0.9,
                "ticklen": 3,
                "font": {"size": 10},
                "steps": [
                    {"label": f"{step:,}", "method": "animate", "args": [[str(step)], at_once]}
                    for step in steps
                ],
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "direction": "left",
                "showactive": False,
                "x": 0.0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 62},
                "font": {"size": 12},
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [None, play]},
                    {"label": "❚❚", "method": "animate", "args": [[None], at_once]},
                ],
            }
        ],
    )


def progress(paths: pd.DataFrame, tolerance: float, colors: Mapping[str, str]) -> go.Figure:
    """The norm of the gradient along the paths.

    Args:
        paths: ``optimizer, start, step, gradient_norm``.
        tolerance: of the squared norm, at which paths end.
        colors: of each optimizer.
    """
    figure = go.Figure()
    places = list(colors)
    for (label, start), mine in paths.groupby(["optimizer", "start"], sort=False):
        same = [n for n in places[: places.index(label)] if colors[n] == colors[label]]
        figure.add_scatter(
            x=mine["step"],
            y=mine["gradient_norm"].where(mine["gradient_norm"] > 0),
            mode="lines",
            line={"color": colors[label], "width": 1.8, "dash": DASHES[len(same) % len(DASHES)]},
            name=str(label),
            legendgroup=str(label),
            showlegend=start == 0,
            hovertemplate=f"{label}, step %{{x}}<br>%{{y:.3g}}<extra></extra>",
        )
    figure.add_hline(y=math.sqrt(tolerance), line={"color": "#111", "dash": "dash", "width": 1})
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        line={"color": "#111", "dash": "dash", "width": 1},
        name=f"paths end at {number(math.sqrt(tolerance))}",
    )
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="norm of the gradient", type="log", exponentformat="power")
    return finish(figure, 380)


def twins(curves: pd.DataFrame, minima: pd.DataFrame) -> go.Figure:
    """What is meant and what is minimised, and that their minima differ.

    Args:
        curves: ``x, risk, empirical``.
        minima: the lowest of each: ``name`` (``risk`` or ``empirical``), ``x``, ``value``, and
            ``risk``, what the risk is there.
    """
    figure = go.Figure()
    names = {"risk": ("risk", BLUE), "empirical": ("empirical risk", ORANGE)}
    for name, (words, color) in names.items():
        figure.add_scatter(
            x=curves["x"],
            y=curves[name],
            mode="lines",
            line={"color": color, "width": 2.2},
            name=words,
            hovertemplate=f"{words}<br>x %{{x:.4g}}<br>%{{y:.4g}}<extra></extra>",
        )
    for row in minima.itertuples():
        words, color = names[row.name]
        figure.add_scatter(
            x=[row.x],
            y=[row.value],
            mode="markers",
            marker={"symbol": "triangle-down", "size": 12, "color": color},
            name=f"minimum of the {words}: x = {number(row.x)}, where the risk is "
            f"{number(row.risk)}",
        )
        figure.add_vline(x=row.x, line={"color": color, "dash": "dot", "width": 1.2})
    figure.update_xaxes(title_text="x", range=[curves["x"].min(), curves["x"].max()])
    figure.update_yaxes(title_text="value")
    return finish(figure, 460)
