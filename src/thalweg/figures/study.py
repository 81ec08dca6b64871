"""The pictures of a study: data frame in, figure out; nothing is computed here."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.figures.style import COLORS, DASHES, SYMBOLS, finish, shade
from thalweg.numbers import number
from thalweg.optim.registry import OPTIMIZERS

__all__ = ["effect", "learning_curves", "metric_against_lr", "time_to_target"]

COLUMNS = 4
PANEL = 210  # pixels of a panel's height
FEW = 3  # levels that dashes and marks tell apart in one colour
WIDE = 10  # times the smallest error, from where on an axis of errors is logarithmic
TRAINING = "training loss, mean of an epoch's batches"


def metric_against_lr(trials: pd.DataFrame, metric: str, percent: bool) -> go.Figure:
    """Final test metric against learning rate, a panel an optimizer, a line an arm.

    Args:
        trials: one row a setting, as `thalweg.studies.StudyResult` documents it.
        metric: name of the metric.
        percent: whether it is a fraction, to be shown in per cent.
    """
    names = list(dict.fromkeys(trials["optimizer"]))
    levels = list(dict.fromkeys(trials["levels"]))
    figure, places = _panels(names)
    scale = 100 if percent else 1
    values = trials["test_metric"]
    # Errors of settings that fail are many times those that matter, which a straight axis crushes.
    log = not percent and _wide(values.dropna())
    low = scale * _floor(trials, percent, log)
    if len(levels) > 1:
        _level_legend(figure, levels)
    for i, (name, place) in enumerate(zip(names, places, strict=True)):
        for k, level in enumerate(levels):
            mine = trials[(trials["optimizer"] == name) & (trials["levels"] == level)]
            count = len(levels)
            _settings(figure, mine, k, count, i == k == 0, scale, low, log, metric, place)
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", showexponent="all")
    if percent:
        figure.update_yaxes(range=[low, 101], ticksuffix=" %")
    if log:
        top = math.log10(1.5 * max(values.max(), trials["high"].max()))
        figure.update_yaxes(type="log", range=[math.log10(low), top], exponentformat="power")
    rows = _rows(names)
    figure.update_xaxes(title_text="learning rate", row=rows)
    figure.update_yaxes(title_text=f"test {metric}", col=1)
    lines = -(-len(levels) // 6)
    finish(figure, rows * PANEL + 110 + 21 * lines)
    return figure.update_layout(margin={"t": 60 + 21 * lines})


def _level_legend(figure: go.Figure, levels: Sequence[str]) -> None:
    """Entries that say which dash and mark is which level, for all panels and their colours."""
    for k, level in enumerate(levels):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines+markers",
            line={
                "color": _level_color(k, len(levels), "#222222"),
                "width": 1.5,
                "dash": DASHES[k % len(DASHES)],
            },
            marker={"size": 7, "symbol": SYMBOLS[k % len(SYMBOLS)]},
            name=level,
        )


def _level_color(k: int, levels: int, otherwise: str) -> str:
    """Of a level's line; where there are few, panels are in their optimizer's colour."""
    return otherwise if levels <= FEW else COLORS[k % len(COLORS)]


def _settings(
    figure: go.Figure,
    mine: pd.DataFrame,
    k: int,
    count: int,
    first: bool,
    scale: int,
    low: float,
    log: bool,
    metric: str,
    place: dict[str, int],
) -> None:
    """One arm's settings: means with intervals, the chosen one, and where seeds diverged."""
    entry, arm = OPTIMIZERS[mine["optimizer"].iloc[0]], mine["arm"].iloc[0]
    several = count > 1
    drawn = mine[mine["test_metric"].notna()]
    figure.add_scatter(
        x=drawn["lr"],
        y=scale * drawn["test_metric"],
        error_y={
            "array": scale * (drawn["high"] - drawn["test_metric"]),
            "arrayminus": scale * drawn["test_metric"]
            - (scale * drawn["low"]).clip(lower=low if log else None),
            "thickness": 1,
            "width": 3,
        },
        mode="lines+markers",
        line={
            "color": _level_color(k, count, entry.color),
            "width": 1.5,
            "dash": DASHES[k % len(DASHES)],
        },
        marker={"size": 6 if several else 5, "symbol": SYMBOLS[k % len(SYMBOLS)]},
        name="mean over seeds, 95 % interval",
        legendgroup="mean",
        # With several levels the entries that tell them apart stand for it.
        showlegend=first and not several,
        customdata=drawn[["n", "diverged"]],
        hovertemplate=f"{arm}, learning rate %{{x:.4g}}<br>{metric} %{{y:.4g}}"
        f"{' %' * (scale == 100)}<br>%{{customdata[0]}} seeds completed, %{{customdata[1]}} "
        "diverged<extra></extra>",
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
        showlegend=first,
        hoverinfo="skip",
        **place,
    )
    failed = mine[mine["diverged"] > 0]
    figure.add_scatter(
        x=failed["lr"],
        # One above the other, or the marks of several levels would hide each other.
        y=[low * 1.15**k if log else low + (3 * k if scale == 100 else 0)] * len(failed),
        mode="markers",
        marker={"symbol": "x", "size": 8, "color": "#c1121f"},
        name="some or all seeds diverged",
        legendgroup="diverged",
        showlegend=first,
        customdata=failed[["diverged", "n"]],
        hovertemplate=f"{arm}, learning rate %{{x:.4g}}<br>%{{customdata[0]}} seeds "
        "diverged, %{customdata[1]} completed<extra></extra>",
        cliponaxis=False,
        **place,
    )


def _wide(values: "pd.Series[float]") -> bool:
    return bool((values > 0).all() and values.max() > WIDE * values.min())


def _floor(trials: pd.DataFrame, percent: bool, log: bool) -> float:
    """Where the marks of diverged settings stand: on the ground."""
    values = trials["test_metric"]
    if log:
        return 0.6 * float(values.min())
    if percent:
        return 0.0
    return 0.0 if values.isna().all() else min(0.0, float(values.min()))


def learning_curves(
    best_curves: pd.DataFrame,
    order: Sequence[str],
    loss: str | Mapping[str, str],
    metric: str,
    percent: bool,
) -> go.Figure:
    """Each arm at its best setting: loss on training and validation data, and the metric.

    Panels are optimizers. Where several arms share a panel the metric, by which alone they can be
    compared, comes first; each loss has a row of its own below, as its units are its own.

    Args:
        best_curves: one row an arm and epoch, as `thalweg.studies.StudyResult` documents it.
        order: optimizers in the order of panels.
        loss: what axes call the loss, or each of several losses by its name.
        metric: name of the metric.
        percent: whether the metric is a fraction, to be shown in per cent.
    """
    names = [n for n in order if n in set(best_curves["optimizer"])]
    levels = list(dict.fromkeys(best_curves["levels"]))
    several = len(levels) > 1
    losses = {"": loss} if isinstance(loss, str) else loss
    rows = [None, *losses] if several else [*losses, None]  # None for the metric
    figure = make_subplots(
        rows=len(rows),
        cols=max(1, len(names)),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.16 / len(rows),
        horizontal_spacing=0.012,
        row_heights=[1.4 if several and name is None else 1 for name in rows],
        column_titles=[OPTIMIZERS[n].label for n in names],
    )
    if several:
        _level_legend(figure, levels)
    for dash, color, words in (
        ("solid" if several else "dot", "#8a8a8a", TRAINING),
        ("solid", "#111111", "validation" + ", in colour" * several),
    ):
        # The legend stands for all panels, whose lines have colours of their own.
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line={"dash": dash, "color": color}, name=words
        )
    for column, name in enumerate(names, start=1):
        for k, level in enumerate(levels):
            mine = best_curves[
                (best_curves["optimizer"] == name) & (best_curves["levels"] == level)
            ]
            for row, which in enumerate(rows, start=1):
                if len(mine) and which in (None, "", mine["loss"].iloc[0]):
                    _curve(
                        figure,
                        mine,
                        f"validation {metric}" if which is None else "",
                        100 if percent else 1,
                        DASHES[k % len(DASHES)] if several else "",
                        _level_color(k, len(levels), OPTIMIZERS[name].color),
                        {"row": row, "col": column},
                    )
    for row, which in enumerate(rows, start=1):
        title = f"validation {metric}" if which is None else losses[which]
        figure.update_yaxes(title_text=title, row=row, col=1, title_standoff=4)
        if which is not None:
            figure.update_yaxes(type="log", exponentformat="power", row=row)
        elif percent:
            figure.update_yaxes(ticksuffix=" %", row=row)
    figure.update_xaxes(title_text="epoch", row=len(rows))
    if not several:
        return finish(figure, 520)
    lines = -(-(len(levels) + 2) // 3)  # of the legend, whose entries are as wide as the longest
    finish(figure, 190 * len(rows) + 140 + 21 * lines)
    return figure.update_layout(margin={"t": 60 + 21 * lines})


def _curve(
    figure: go.Figure,
    mine: pd.DataFrame,
    metric: str,
    scale: int,
    dash: str,
    color: str,
    place: dict[str, int],
) -> None:
    """One arm in one panel: the metric, if it is given, or else both losses."""
    parts = (
        [("validation_metric", scale, color, dash or "solid", metric)]
        if metric
        else [
            ("train_loss", 1, "#8a8a8a", dash or "dot", TRAINING),
            ("validation_loss", 1, color, dash or "solid", "validation loss"),
        ]
    )
    for quantity, factor, shade_of, pattern, words in parts:
        line = {
            "name": words,
            "showlegend": False,
            "line": {"dash": pattern, "width": 1.8},
            "text": [mine["arm"].iloc[0]] * len(mine),
        }
        _band(figure, mine, quantity, factor, shade_of, line, place)


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
    """Epochs and seconds until the target was reached, median over seeds, a bar an arm.

    Args:
        summary: one row an arm, as `thalweg.studies.StudyResult` documents it.
        target: the target in words, "validation accuracy 95 %".
    """
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06,
        column_titles=["epochs", "seconds of training a run"],
    )  # fmt: skip
    rows = summary.iloc[::-1]
    labels = list(rows["arm"])
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
    finish(figure, 32 * len(rows) + 100, legend=False)
    return figure.update_yaxes(automargin=True, col=1)  # names of arms are long


def effect(effects: pd.DataFrame, metric: str, percent: bool, *, start: bool = False) -> go.Figure:
    """What one factor does: the test metric at each of its levels, a line a context.

    Args:
        effects: rows of one factor, as `thalweg.studies.StudyResult` documents them.
        metric: name of the metric.
        percent: whether it is a fraction, to be shown in per cent.
        start: whether the norm of the gradient at the initial weights stands beside it.
    """
    levels = list(dict.fromkeys(effects["level"]))
    contexts = list(dict.fromkeys(effects["context"]))
    name = effects["factor"].iloc[0]
    places = _level_places(effects, name)
    columns = 2 if start else 1
    figure = make_subplots(
        rows=1,
        cols=columns,
        column_widths=[0.68, 0.32][:columns],
        horizontal_spacing=0.1,
        column_titles=[f"test {metric}", "norm of the gradient at the start"][:columns],
    )
    scale = 100 if percent else 1
    patterns: dict[str, int] = {}  # of contexts, by what they are besides the optimizer
    for i, context in enumerate(contexts):
        mine = effects[(effects["context"] == context) & effects["test_metric"].notna()]
        every = effects[effects["context"] == context]
        k = patterns.setdefault(context.partition(", ")[2], len(patterns))
        figure.add_scatter(
            # Side by side, so that no interval hides another.
            x=[places[n] + _aside(i, len(contexts)) for n in mine["level"]],
            y=scale * mine["test_metric"],
            error_y={
                "array": scale * (mine["high"] - mine["test_metric"]),
                "arrayminus": scale * (mine["test_metric"] - mine["low"]),
                "thickness": 1.2,
                "width": 4,
            },
            mode="lines+markers",
            line={
                "color": OPTIMIZERS[every["optimizer"].iloc[0]].color,
                "width": 1.2,
                "dash": DASHES[k % len(DASHES)],
            },
            marker={"size": 8, "symbol": SYMBOLS[k % len(SYMBOLS)]},
            name=context,
            text=mine["level"],
            customdata=mine["lr"],
            hovertemplate=f"{context}, %{{text}}<br>{metric} %{{y:.4g}}{' %' * percent}"
            "<br>learning rate %{customdata:.4g}<extra></extra>",
            row=1,
            col=1,
        )
    ticks = {"tickmode": "array", "tickvals": list(places.values()), "ticktext": levels}
    figure.update_xaxes(
        title_text=name.replace("_", " "), range=[-0.5, max(places.values()) + 0.5], **ticks
    )
    figure.update_yaxes(title_text=f"test {metric}", col=1)
    if percent:
        figure.update_yaxes(ticksuffix=" %", col=1)
    if start:
        _starts(figure, effects, places, list(patterns))
    return finish(figure, 380)


def _starts(
    figure: go.Figure, effects: pd.DataFrame, places: Mapping[str, float], others: Sequence[str]
) -> None:
    """The gradient norms of all levels, beside the metric; the same for all optimizers."""
    for k, other in enumerate(others):
        mine = effects[effects["context"].str.partition(", ")[2] == other]
        mine = mine.drop_duplicates("level")
        figure.add_scatter(
            x=[places[n] + _aside(k, len(others)) for n in mine["level"]],
            y=mine["gradient_norm"],
            mode="markers+text",
            marker={"size": 9, "color": "#444444", "symbol": SYMBOLS[k % len(SYMBOLS)]},
            text=["" if pd.isna(v) else number(v) for v in mine["gradient_norm"]],
            # Neighbours of nearly the same height would write over each other.
            textposition="bottom center" if k % 2 else "top center",
            customdata=mine["start_loss"],
            hovertemplate=f"{other or 'all optimizers'}<br>gradient norm %{{y:.4g}}, loss "
            "%{customdata:.4g}<extra></extra>",
            showlegend=False,
            cliponaxis=False,
            row=1,
            col=2,
        )
    figure.update_yaxes(
        title_text="gradient norm, mean over seeds",
        type="log",
        dtick=1,
        range=_decades(effects),
        col=2,
    )


def _level_places(effects: pd.DataFrame, factor: str) -> dict[str, float]:
    """Where levels stand: one after another, or if they are numbers by their logarithms."""
    levels = effects.drop_duplicates("level")
    values = levels[factor]
    if len(levels) < 2 or not pd.api.types.is_numeric_dtype(values):
        return {level: float(i) for i, level in enumerate(levels["level"])}
    logs = [math.log(v) for v in values]
    nearest = min(abs(b - a) for a, b in pairwise(sorted(logs)))
    return {n: (v - min(logs)) / nearest for n, v in zip(levels["level"], logs, strict=True)}


def _aside(i: int, count: int) -> float:
    """How far from its level's place a context's mark stands."""
    return (i - (count - 1) / 2) * min(0.12, 0.6 / count)


def _decades(rows: pd.DataFrame) -> list[float]:
    """Whole decades around the norms, which a logarithmic axis needs to show a tick."""
    found = rows["gradient_norm"]
    found = found[(found > 0) & (found < math.inf)]
    if found.empty:
        return [-1.0, 1.0]
    return [math.floor(math.log10(found.min())), math.ceil(math.log10(1.2 * found.max()))]


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
