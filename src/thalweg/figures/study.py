"""The pictures of a study: data frame in, figure out; nothing is computed here."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import finish, number, shade
from thalweg.optim.registry import OPTIMIZERS

__all__ = ["learning_curves", "metric_against_lr", "time_to_target"]

COLUMNS = 4
PANEL = 210  # pixels of a panel's height


def metric_against_lr(trials: pd.DataFrame, metric: str, percent: bool) -> go.Figure:
    """Final test metric against learning rate, a panel an optimizer.

    Args:
        trials: one row a setting, as `thalweg.studies.StudyResult` documents it.
        metric: name of the metric.
        percent: whether it is a fraction, to be shown in per cent.
    """
    names = list(dict.fromkeys(trials["optimizer"]))
    figure, places = _panels(names)
    scale = 100 if percent else 1
    low = scale * _floor(trials, percent)
    for i, (name, place) in enumerate(zip(names, places, strict=True)):
        entry = OPTIMIZERS[name]
        mine = trials[trials["optimizer"] == name]
        drawn = mine[mine["test_metric"].notna()]
        figure.add_scatter(
            x=drawn["lr"],
            y=scale * drawn["test_metric"],
            error_y={
                "array": scale * (drawn["high"] - drawn["test_metric"]),
                "arrayminus": scale * (drawn["test_metric"] - drawn["low"]),
                "thickness": 1,
                "width": 3,
            },
            mode="lines+markers",
            line={"color": entry.color, "width": 1.5},
            marker={"size": 5},
            name="mean over seeds, 95 % interval",
            legendgroup="mean",
            showlegend=i == 0,
            customdata=drawn[["n", "diverged"]],
            hovertemplate=f"{entry.label}, learning rate %{{x:.4g}}<br>{metric} %{{y:.4g}}"
            f"{' %' * percent}<br>%{{customdata[0]}} seeds completed, %{{customdata[1]}} diverged"
            "<extra></extra>",
            **place,
        )
        best = drawn[drawn["best"]]
        figure.add_scatter(
            x=best["lr"],
            y=scale * best["test_metric"],
            mode="markers",
            marker={"symbol": "circle-open", "size": 13, "color": "#111", "line": {"width": 2}},
            name="chosen on validation data",
            legendgroup="best",
            showlegend=i == 0,
            hoverinfo="skip",
            **place,
        )
        failed = mine[mine["diverged"] > 0]
        figure.add_scatter(
            x=failed["lr"],
            y=[low] * len(failed),
            mode="markers",
            marker={"symbol": "x", "size": 8, "color": "#c1121f"},
            name="some or all seeds diverged",
            legendgroup="diverged",
            showlegend=i == 0,
            customdata=failed[["diverged", "n"]],
            hovertemplate=f"{entry.label}, learning rate %{{x:.4g}}<br>%{{customdata[0]}} seeds "
            "diverged, %{customdata[1]} completed<extra></extra>",
            cliponaxis=False,
            **place,
        )
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", showexponent="all")
    if percent:
        figure.update_yaxes(range=[low, 101], ticksuffix=" %")
    rows = _rows(names)
    figure.update_xaxes(title_text="learning rate", row=rows)
    figure.update_yaxes(title_text=f"test {metric}", col=1)
    return finish(figure, rows * PANEL + 110)


def _floor(trials: pd.DataFrame, percent: bool) -> float:
    """Where the marks of diverged settings stand: on the ground."""
    if percent:
        return 0.0
    values = trials["test_metric"]
    return 0.0 if values.isna().all() else min(0.0, float(values.min()))


def learning_curves(
    best_curves: pd.DataFrame, order: Sequence[str], loss: str, metric: str, percent: bool
) -> go.Figure:
    """Each optimizer at its best setting: loss on training and validation data, and the metric.

    Args:
        best_curves: one row an optimizer and epoch, as `thalweg.studies.StudyResult` documents it.
        order: optimizers in the order of panels.
        loss: name of the loss.
        metric: name of the metric.
        percent: whether the metric is a fraction, to be shown in per cent.
    """
    names = [n for n in order if n in set(best_curves["optimizer"])]
    figure = make_subplots(
        rows=2,
        cols=max(1, len(names)),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.08,
        horizontal_spacing=0.012,
        column_titles=[OPTIMIZERS[n].label for n in names],
    )
    parts = (
        ("train_loss", 1, "#8a8a8a", "dot", "training loss, mean of an epoch's batches"),
        ("validation_loss", 1, "", "solid", "validation loss"),
        ("validation_metric", 2, "", "solid", f"validation {metric}"),
    )
    for dash, color, words in (
        ("dot", "#8a8a8a", parts[0][4]),
        ("solid", "#111111", "validation"),
    ):
        # The legend stands for all panels, whose lines have colours of their own.
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line={"dash": dash, "color": color}, name=words
        )
    for column, name in enumerate(names, start=1):
        mine = best_curves[best_curves["optimizer"] == name]
        for quantity, row, color, dash, words in parts:
            scale = 100 if percent and quantity == "validation_metric" else 1
            _band(
                figure,
                mine,
                quantity,
                scale,
                color or OPTIMIZERS[name].color,
                {
                    "name": words,
                    "showlegend": False,
                    "line": {"dash": dash, "width": 1.8},
                    "text": [OPTIMIZERS[name].label] * len(mine),
                },
                {"row": row, "col": column},
            )
    figure.update_yaxes(title_text=loss, type="log", row=1, col=1, title_standoff=4)
    figure.update_yaxes(type="log", exponentformat="power", row=1)
    figure.update_yaxes(title_text=f"validation {metric}", row=2, col=1, title_standoff=4)
    if percent:
        figure.update_yaxes(ticksuffix=" %", row=2)
    figure.update_xaxes(title_text="epoch", row=2)
    return finish(figure, 520)


def _band(
    figure: go.Figure,
    frame: pd.DataFrame,
    quantity: str,
    scale: float,
    color: str,
    line: dict[str, Any],
    place: dict[str, int],
) -> None:
    """A median as a line, and the range over seeds as a band behind it."""
    x = frame["epoch"]
    low, high = (scale * frame[f"{quantity}_{end}"] for end in ("low", "high"))
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=shade(color),
        mode="none",
        hoverinfo="skip",
        showlegend=False,
        **place,
    )
    figure.add_scatter(
        x=x,
        y=scale * frame[f"{quantity}_median"],
        mode="lines",
        hovertemplate=f"%{{text}}, epoch %{{x}}<br>{line['name']}: %{{y:.4g}}<extra></extra>",
        **{**line, "line": {**line["line"], "color": color}},
        **place,
    )


def time_to_target(summary: pd.DataFrame, target: str) -> go.Figure:
    """Epochs and seconds until the target was reached, median over seeds, a bar an optimizer.

    Args:
        summary: one row an optimizer, as `thalweg.studies.StudyResult` documents it.
        target: the target in words, "validation accuracy 95 %".
    """
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06,
        column_titles=["epochs", "seconds of training a run"],
    )  # fmt: skip
    rows = summary.iloc[::-1]
    labels = [OPTIMIZERS[n].label for n in rows["optimizer"]]
    colors = [OPTIMIZERS[n].color for n in rows["optimizer"]]
    for column, quantity in enumerate(("epochs_to_target", "seconds_to_target"), start=1):
        figure.add_bar(
            y=labels,
            x=rows[quantity],
            orientation="h",
            marker_color=colors,
            text=["not reached" if pd.isna(v) else number(v) for v in rows[quantity]],
            textposition="outside",
            cliponaxis=False,
            customdata=rows[["reached", "seeds"]],
            hovertemplate="%{y}: %{x:.4g}<br>%{customdata[0]} of %{customdata[1]} seeds reached "
            f"{target}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        largest = rows[quantity].max()
        if pd.notna(largest):
            figure.update_xaxes(range=[0, 1.2 * largest], col=column)
    figure.update_xaxes(title_text=f"epochs to {target}", col=1)
    figure.update_xaxes(title_text=f"seconds to {target}", col=2)
    return finish(figure, 32 * len(rows) + 100, legend=False)


def _rows(names: Sequence[str]) -> int:
    return max(1, -(-len(names) // COLUMNS))


def _panels(names: Sequence[str]) -> tuple[go.Figure, list[dict[str, int]]]:
    """One panel a name, in rows of four on shared axes, and the place of each."""
    columns = max(1, min(COLUMNS, len(names)))
    figure = make_subplots(
        rows=_rows(names),
        cols=columns,
        shared_yaxes=True,
        vertical_spacing=0.2 if _rows(names) > 1 else 0,
        horizontal_spacing=0.025,
        subplot_titles=[OPTIMIZERS[n].label for n in names],
    )
    return figure, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(names))]
