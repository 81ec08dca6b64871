"""The pictures of local minima and of random matrices: data in, figure out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import finish
from thalweg.numbers import number

__all__ = ["eigenvalue_signs", "escape_share", "positive_share"]

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
RANGE = 6  # powers of ten below the largest eigenvalue, beyond which all is as good as zero


def escape_share(table: pd.DataFrame, optimizer: str, lr: float, steps: int) -> go.Figure:
    """Share of runs that leave a local minimum, against the noise of their gradients.

    Args:
        table: as `thalweg.landscape.escape.Escape` documents it.
        optimizer: as the legend calls it.
        lr: its learning rate.
        steps: of every run.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=table["noise"],
        y=100 * table["share"],
        error_y={
            "array": 100 * (table["high"] - table["share"]),
            "arrayminus": 100 * (table["share"] - table["low"]),
            "thickness": 1.2,
            "width": 4,
        },
        mode="lines+markers",
        line={"color": BLUE, "width": 1.6},
        marker={"size": 7},
        name=f"{optimizer}, learning rate {number(lr)}, {steps:,} steps, "
        f"{table['runs'].iloc[0]:,} runs each; 95 % interval",
        hovertemplate="noise %{x:.3g}<br>%{y:.3g} %<extra></extra>",
    )
    known = table[table["theory"].notna()]
    if len(known):
        figure.add_scatter(
            x=known["noise"],
            y=100 * known["theory"],
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 16, "color": ORANGE, "line": {"width": 3}},
            name="Kramers' rate",
            hovertemplate="Kramers %{y:.3g} %<extra></extra>",
        )
    figure.update_xaxes(title_text="standard deviation of the gradient's noise")
    figure.update_yaxes(
        title_text="runs that reached the global minimum", ticksuffix=" %", range=[-3, 103]
    )
    return finish(figure, 420).update_layout(showlegend=True)


def positive_share(table: pd.DataFrame) -> go.Figure:
    """Share of random symmetric matrices with positive eigenvalues alone, against their size.

    Args:
        table: as `thalweg.landscape.random_matrices.PositiveShare` documents it.
    """
    figure = go.Figure()
    found, none = table[table["positive"] > 0], table[table["positive"] == 0]
    figure.add_scatter(
        x=found["size"],
        y=found["share"],
        error_y={
            "array": found["high"] - found["share"],
            "arrayminus": found["share"] - found["low"],
            "thickness": 1.2,
            "width": 4,
        },
        mode="markers",
        marker={"size": 9, "color": BLUE},
        name=f"of {table['samples'].iloc[0]:,} matrices, 95 % interval",
        hovertemplate="size %{x}<br>%{y:.3g}<extra></extra>",
    )
    if len(none):
        figure.add_scatter(
            x=none["size"],
            y=none["high"],
            mode="markers",
            marker={"symbol": "arrow-down", "size": 14, "color": BLUE},
            name="none found: below this",
            hovertemplate="size %{x}<br>below %{y:.3g}<extra></extra>",
        )
    exact = table[table["exact"].notna()]
    figure.add_scatter(
        x=exact["size"],
        y=exact["exact"],
        mode="markers",
        marker={"symbol": "circle-open", "size": 17, "color": GREEN, "line": {"width": 2}},
        name="exact",
        hovertemplate="exact %{y:.4g}<extra></extra>",
    )
    figure.add_scatter(
        x=table["size"],
        y=table["law"],
        mode="lines",
        line={"color": ORANGE, "dash": "dash", "width": 1.8},
        name="3^(−n²/4), its leading term for large sizes",
        hovertemplate="law %{y:.3g}<extra></extra>",
    )
    figure.update_xaxes(title_text="size n of the matrix", tickvals=table["size"])
    figure.update_yaxes(
        title_text="share with all eigenvalues positive",
        type="log",
        exponentformat="power",
        dtick=1,
    )
    return finish(figure, 440).update_layout(showlegend=True)


def eigenvalue_signs(eigenvalues: pd.DataFrame, titles: Sequence[str]) -> go.Figure:
    """Magnitudes of a Hessian's negative and positive eigenvalues, a panel a moment.

    Args:
        eigenvalues: a row an eigenvalue: ``moment`` (0, 1, ...), ``eigenvalue``, ``weight`` (its
            share of all).
        titles: of the moments.
    """
    figure = make_subplots(
        rows=1, cols=len(titles), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles
    )
    known = eigenvalues[eigenvalues["eigenvalue"] != 0]
    logs = np.log10(known["eigenvalue"].abs())
    top = float(logs.max())
    bottom = max(float(logs.min()), top - RANGE)
    width = 0.25
    for moment in range(len(titles)):
        mine = known[known["moment"] == moment]
        for sign, name, color in ((1, "positive", BLUE), (-1, "negative", ORANGE)):
            signed = mine[np.sign(mine["eigenvalue"]) == sign]
            figure.add_histogram(
                x=np.log10(signed["eigenvalue"].abs()),
                y=100 * signed["weight"],
                histfunc="sum",
                xbins={"start": np.floor(bottom), "end": np.ceil(top) + width, "size": width},
                marker={"color": color},
                opacity=0.8,
                name=name,
                showlegend=moment == 0,
                hovertemplate=f"{name}, 10^%{{x}}<br>%{{y:.3g}} %<extra></extra>",
                row=1,
                col=moment + 1,
            )
    ticks = list(range(int(np.floor(bottom)), int(np.ceil(top)) + 1))
    figure.update_xaxes(
        title_text="size of the eigenvalue",
        tickvals=ticks,
        ticktext=[f"10<sup>{t}</sup>" for t in ticks],
        range=[np.floor(bottom), np.ceil(top) + width],
    )
    figure.update_yaxes(
        title_text="share of all eigenvalues", title_standoff=14, ticksuffix=" %", col=1
    )
    return finish(figure, 400).update_layout(showlegend=True, barmode="overlay")
