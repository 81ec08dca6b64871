"""The pictures of gradient flow: data frame in, figure out; nothing is computed here."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import finish, shade
from thalweg.numbers import number

__all__ = ["activations", "curve", "gradients", "shares"]

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"
PALE = "#a6cce6"
ROW = 22  # pixels of a layer
DECADES = 12  # that colours tell apart; what is smaller yet looks the same
GRADIENTS = {
    "gradient": "gradient with respect to outputs",
    "weight gradient": "gradient with respect to weights",
}
SHARES = {
    "saturated": "values where the derivative is below 5 % of its maximum",
    "dead": "units that no later sample activates",
    "silent": "units that no sample of the batch activates",
}


def gradients(frame: pd.DataFrame) -> go.Figure:
    """How large gradients are in each layer over steps, the first layer on top.

    White is what is exactly 0, or not finite.

    Args:
        frame: as `thalweg.landscape.flow.Flow.frame` documents it.
    """
    shown = [what for what in GRADIENTS if (frame["what"] == what).any()]
    sound = (frame["rms"] > 0) & np.isfinite(frame["rms"])
    sized = frame.assign(size=np.log10(frame["rms"].where(sound)))
    known = sized.loc[sized["what"].isin(shown), "size"].dropna()
    low, high = (np.floor(known.min()), np.ceil(known.max())) if len(known) else (-1.0, 0.0)
    low = max(low, high - DECADES)
    ticks = np.unique(np.linspace(low, high, 7).round()).astype(int)
    panels = []
    for what in shown:
        mine = sized[sized["what"] == what]
        white = " (white: exactly 0, or not finite)" if mine["size"].isna().any() else ""
        panels.append((GRADIENTS[what] + white, mine, "size"))
    colors = {
        "colorscale": "Viridis",
        "cmin": low,
        "cmax": high,
        "colorbar": {
            "title": {"text": "root mean square", "side": "right"},
            "tickvals": ticks,
            "ticktext": [f"10<sup>{t}</sup>" for t in ticks],
            "thickness": 14,
        },
    }
    return _heat(panels, colors, lambda size: number(10**size))


def shares(frame: pd.DataFrame) -> go.Figure:
    """Saturated values, dead and silent units of each layer that can have them, over steps.

    Args:
        frame: as `thalweg.landscape.flow.Flow.frame` documents it.
    """
    shown = [of for of in SHARES if frame[of].notna().any()]
    panels = [(SHARES[of], frame[frame[of].notna()], of) for of in shown]
    colors = {
        "colorscale": "Reds",
        "cmin": 0,
        "cmax": 1,
        "colorbar": {"tickformat": ".0%", "thickness": 14, "title": {"text": "share"}},
    }
    return _heat(panels, colors, lambda share: f"{share:.0%}")


def _heat(
    panels: list[tuple[str, pd.DataFrame, str]],
    colors: dict[str, Any],
    text: Callable[[float], str],
) -> go.Figure:
    """Layer by step: a title, rows of a frame and the column that gives the colour for each."""
    figure = make_subplots(
        rows=1,
        cols=max(1, len(panels)),
        horizontal_spacing=0.13,
        subplot_titles=[title for title, _, _ in panels] or None,
    )
    tallest = 1
    for column, (_, mine, of) in enumerate(panels, 1):
        table = mine.pivot_table(of, "depth", "step", dropna=False).sort_index()
        names = mine.drop_duplicates("depth").set_index("depth")
        labels = [_label(names["layer"][d], names["kind"][d]) for d in table.index]
        tallest = max(tallest, len(labels))
        values = table.to_numpy()
        figure.add_heatmap(
            x=table.columns,
            y=labels,
            z=values,
            text=[["" if np.isnan(v) else text(v) for v in row] for row in values],
            coloraxis="coloraxis",
            hovertemplate="%{y}, step %{x}<br>%{text}<extra></extra>",
            hoverongaps=False,
            row=1,
            col=column,
        )
        figure.update_yaxes(autorange="reversed", type="category", row=1, col=column)
        figure.update_xaxes(title_text="step", row=1, col=column)
    finish(figure, max(260, 130 + ROW * tallest), legend=False)
    figure.update_layout(coloraxis=colors, margin={"l": 110, "t": 40})
    figure.update_yaxes(showgrid=False, ticks="")
    return figure.update_xaxes(showgrid=False)


def _label(layer: str, kind: str) -> str:
    return layer if kind == "input" else f"{layer}  {kind}"


def activations(frame: pd.DataFrame) -> go.Figure:
    """How the outputs of each layer are distributed: at first, in the middle and at last.

    Args:
        frame: as `thalweg.landscape.flow.Flow.frame` documents it.
    """
    known = frame[(frame["what"] == "activation") & frame["q50"].notna()]
    every = sorted(known["step"].unique())
    steps = list(dict.fromkeys([*every[:1], *every[len(every) // 2 :][:1], *every[-1:]]))
    figure = make_subplots(
        rows=max(1, len(steps)),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        subplot_titles=[f"step {step}" for step in steps] or None,
    )
    many = 0
    for row, step in enumerate(steps, 1):
        mine = known[known["step"] == step].sort_values("depth")
        labels = [_label(a, b) for a, b in zip(mine["layer"], mine["kind"], strict=True)]
        many = max(many, len(labels))
        for low, high, width, color, name in (
            ("q05", "q95", 0.36, PALE, "nine tenths of the values"),
            ("q25", "q75", 0.7, BLUE, "the middle half"),
        ):
            figure.add_bar(
                x=labels,
                y=mine[high] - mine[low],
                base=mine[low],
                width=width,
                marker={"color": color, "line_width": 0},
                name=name,
                showlegend=row == 1,
                customdata=mine[[low, high]],
                hovertemplate=f"%{{x}}<br>{name}: %{{customdata[0]:.3g}} to "
                "%{customdata[1]:.3g}<extra></extra>",
                row=row,
                col=1,
            )
        figure.add_scatter(
            x=labels,
            y=mine["q50"],
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 11, "color": ORANGE, "line_width": 2},
            name="median",
            showlegend=row == 1,
            hovertemplate="%{x}<br>median %{y:.3g}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(title_text="output")
    slanted = many > 10
    finish(figure, 170 * max(1, len(steps)) + (190 if slanted else 130))
    figure.update_xaxes(tickangle=-60 if slanted else 0, type="category")
    return figure.update_layout(margin={"b": 110 if slanted else 50})


def curve(frame: pd.DataFrame, name: str = "tanh", at: float | None = 4.0) -> go.Figure:
    """An activation function and its derivative; shaded is where that vanishes.

    Args:
        frame: as `thalweg.landscape.activations.curve` documents it.
        name: of the function.
        at: where its derivative is written; None for nowhere.
    """
    figure = go.Figure()
    edges = np.flatnonzero(np.diff(frame["flat"].to_numpy().astype(int), prepend=0, append=0))
    x = frame["x"].to_numpy()
    for start, end in edges.reshape(-1, 2):
        figure.add_vrect(
            x0=x[start], x1=x[end - 1], fillcolor=shade(GREY), line_width=0, layer="below"
        )
    if len(edges):
        figure.add_scatter(
            x=[None], y=[None], mode="markers",
            marker={"symbol": "square", "size": 12, "color": shade(GREY)},
            name="derivative below 5 % of its maximum",
        )  # fmt: skip
    for of, label, color, dash in (
        ("value", name, BLUE, "solid"),
        ("derivative", "its derivative", ORANGE, "dash"),
    ):
        figure.add_scatter(
            x=x,
            y=frame[of],
            mode="lines",
            line={"color": color, "width": 2.2, "dash": dash},
            name=label,
            hovertemplate=f"x %{{x:.3g}}<br>{label} %{{y:.3g}}<extra></extra>",
        )
    if at is not None:
        nearest = frame.iloc[(frame["x"] - at).abs().argmin()]
        figure.add_annotation(
            x=nearest["x"],
            y=nearest["derivative"],
            text=f"derivative at {number(nearest['x'])}: {number(nearest['derivative'])}",
            ax=0,
            ay=-60,
            arrowcolor=GREY,
        )
    figure.update_xaxes(title_text="x")
    figure.update_yaxes(title_text="value")
    return finish(figure, 380)
