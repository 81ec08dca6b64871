"""The pictures of the generalisation gap: data in, figure out; nothing is computed here."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import COLORS, SYMBOLS, finish

__all__ = ["gap_against_sharpness", "risks"]

BLUE, ORANGE, INK = "#0072b2", "#d55e00", "#222222"


def gap_against_sharpness(runs: pd.DataFrame, loss: str, radius: float) -> go.Figure:
    """The gap against both measures of sharpness, a point a run.

    Args:
        runs: a row a run: ``optimizer, batch_size, seed, gap, eigenvalue, sharpness``.
        loss: name of the loss.
        radius: of the ball, as a share of the norm of the weights.
    """
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    optimizers = list(dict.fromkeys(runs["optimizer"]))
    sizes = list(dict.fromkeys(runs["batch_size"]))
    for i, optimizer in enumerate(optimizers):
        for k, size in enumerate(sizes):
            mine = runs[(runs["optimizer"] == optimizer) & (runs["batch_size"] == size)]
            for column, of in enumerate(("eigenvalue", "sharpness"), 1):
                figure.add_scatter(
                    x=mine[of],
                    y=mine["gap"],
                    mode="markers",
                    marker={
                        "color": COLORS[i % len(COLORS)],
                        "symbol": SYMBOLS[k % len(SYMBOLS)],
                        "size": 10,
                        "line": {"color": "white", "width": 1},
                    },
                    name=f"{optimizer}, batches of {size:,}",
                    showlegend=column == 1,
                    customdata=mine["seed"],
                    hovertemplate=f"{optimizer}, batches of {size:,}, seed %{{customdata}}<br>gap "
                    "%{y:.4g}, at %{x:.4g}<extra></extra>",
                    row=1,
                    col=column,
                )
    figure.update_xaxes(type="log", title_text="largest eigenvalue of the Hessian", col=1)
    figure.update_xaxes(
        type="log",
        title_text=f"rise of the training loss within {100 * radius:.3g} % of the weights' norm",
        col=2,
    )
    figure.update_yaxes(rangemode="tozero")
    title = f"validation less training {loss}"
    figure.update_yaxes(title_text=title, title_standoff=14, col=1)
    return finish(figure, 440).update_layout(showlegend=True)


def risks(curves: pd.DataFrame, table: pd.DataFrame, loss: str) -> go.Figure:
    """Training and validation loss over epochs, a panel a way of training.

    Args:
        curves: a row a run and epoch: ``optimizer, batch_size, seed, epoch, train_loss,
            validation_loss``.
        table: a row a panel, all optimizers of a batch size side by side: ``optimizer, batch_size,
            overfits_from``, NaN where it does not.
        loss: name of the loss.
    """
    columns = table["optimizer"].nunique()
    rows = -(-len(table) // columns)
    titles = [f"{row.optimizer}, batches of {row.batch_size:,}" for row in table.itertuples()]
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes="all",
        shared_xaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=0.18 / rows,
        subplot_titles=titles,
    )
    over = False
    for i, row in enumerate(table.itertuples()):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        mine = curves[
            (curves["optimizer"] == row.optimizer) & (curves["batch_size"] == row.batch_size)
        ]
        for k, (seed, run) in enumerate(mine.groupby("seed")):
            for of, color in (("train_loss", BLUE), ("validation_loss", ORANGE)):
                name = "training" if of == "train_loss" else "validation"
                figure.add_scatter(
                    x=run["epoch"],
                    y=run[of],
                    mode="lines",
                    line={"color": color, "width": 1.3},
                    name=name,
                    legendgroup=name,
                    showlegend=i == k == 0,
                    hovertemplate=f"{name}, seed {seed}, epoch %{{x}}<br>%{{y:.4g}}<extra></extra>",
                    **place,
                )
        if math.isfinite(row.overfits_from):
            over = True
            line = {"color": INK, "dash": "dash", "width": 1.4}
            figure.add_vline(x=row.overfits_from, line=line, **place)
        if i // columns == rows - 1:
            figure.update_xaxes(title_text="epoch", **place)
    if over:
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": INK, "dash": "dash", "width": 1.4},
            name="over-fitting begins, mean over seeds",
        )
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title_text=loss, col=1)
    seen = curves[["train_loss", "validation_loss"]].to_numpy()
    lowest, highest = np.log10([seen.min(), seen.max()])
    figure.update_yaxes(range=[lowest - 0.1, highest + 0.1])
    return finish(figure, 250 * rows + 140).update_layout(showlegend=True)
