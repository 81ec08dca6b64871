"""The pictures of a profile: data frame in, figure out; nothing is computed here."""

from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from thalweg.figures.style import COLORS, finish
from thalweg.numbers import duration, scaled
from thalweg.tasks.memory import shown

__all__ = ["changes", "memory", "reached", "step"]

BLUE, ORANGE, GREY = COLORS[0], COLORS[1], "#777777"
VERDICTS = {"faster": BLUE, "slower": ORANGE, "none": GREY}
LABELLED = 0.05  # of a bar, that has room for words
ROW = 34  # pixels of a change
WIDTH = 52  # characters of a line
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50)


def step(frame: pd.DataFrame) -> go.Figure:
    """Where the time of a step goes: one bar, cut into parts.

    Args:
        frame: a row a part: ``part, seconds, share``.
    """
    names = frame["part"].replace("python", "Python overhead")
    return _bar(names, frame["share"], [duration(t) for t in frame["seconds"]])


def memory(frame: pd.DataFrame) -> go.Figure:
    """What lies in memory during a step: one bar, cut into kinds.

    Args:
        frame: a row a kind: ``kind, bytes, share``.
    """
    return _bar(frame["kind"], frame["share"], [shown(size) for size in frame["bytes"]])


def _bar(names: "pd.Series[str]", shares: "pd.Series[float]", texts: list[str]) -> go.Figure:
    figure = go.Figure()
    for color, name, share, text in zip((*COLORS[:6], GREY), names, shares, texts, strict=False):
        if not share:
            continue
        figure.add_bar(
            x=[share],
            y=[""],
            orientation="h",
            name=f"{name}, {text}",
            marker={"color": color, "line": {"color": "white", "width": 1}},
            text=f"{share:.0%}" if share >= LABELLED else "",
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            insidetextfont={"color": "white"},
            hovertemplate=f"{name}: {text}, %{{x:.1%}}<extra></extra>",
        )
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(showticklabels=False, ticks="")
    figure = finish(figure, 190)
    return figure.update_layout(
        barmode="stack", margin={"l": 20, "t": 90}, legend={"traceorder": "normal"}
    )


def reached(frame: pd.DataFrame, flops: float, rate: float) -> go.Figure:
    """What parts of a step compute a second, under the roof of what the machine reaches.

    The roofline of Williams, Waterman and Patterson (2009): on the slope memory is the limit, on
    the level the arithmetic.

    Args:
        frame: a row a part: ``part, flops, bytes, flops_per_second, of_possible``; those without
            operations are left out.
        flops: operations a second that the machine reaches.
        rate: bytes a second, likewise.
    """
    mine = frame[frame["flops"].notna()]
    density = mine["flops"] / mine["bytes"]
    ridge = flops / rate
    ends = np.array([min(density.min(), ridge) / 4, ridge, max(density.max(), ridge) * 4])
    figure = go.Figure()
    figure.add_scatter(
        x=ends,
        y=np.minimum(flops, rate * ends),
        mode="lines",
        line={"color": "#222222", "width": 2},
        name=f"reached by this machine: {scaled(flops, 'FLOP/s')}, {scaled(rate, 'B/s')}",
        hoverinfo="skip",
    )
    for color, x, (_, row) in zip(COLORS, density, mine.iterrows(), strict=False):
        y = row["flops_per_second"]
        figure.add_scatter(
            x=[x, x],
            y=[min(flops, rate * x), y],
            mode="lines",
            line={"color": color, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={"size": 11, "color": color},
            name=f"{row['part']}: {scaled(y, 'FLOP/s')}, {row['of_possible']:.1%} of the roof",
            hovertemplate=f"{row['part']}: {scaled(y, 'FLOP/s')} at %{{x:.3g}} FLOP a byte"
            "<extra></extra>",
        )
    figure.update_xaxes(
        type="log", dtick=1, title_text="operations for each byte that has to be moved"
    )
    figure.update_yaxes(
        type="log", dtick=1, title_text="operations a second (FLOP/s)", exponentformat="SI"
    )
    return finish(figure, 400)


def changes(frame: pd.DataFrame) -> go.Figure:
    """What each change gained when it was tried, with its interval.

    Args:
        frame: a row a change, best first: ``change, gain, low, high, verdict``; those without a
            gain are left out.
    """
    mine = frame[frame["gain"].notna()].iloc[::-1]
    names = ["<br>".join(wrap(change, WIDTH)) for change in mine["change"]]
    # As a ratio and by its logarithm, so that twice and half as fast are as far from 1.
    ratio, low, high = (1 + mine[column] for column in ("gain", "low", "high"))
    figure = go.Figure()
    figure.add_scatter(
        x=ratio,
        y=list(range(len(mine))),
        error_x={
            "array": high - ratio,
            "arrayminus": ratio - low,
            "thickness": 1.5,
            "width": 4,
            "color": GREY,
        },
        mode="markers",
        marker={"size": 10, "color": [VERDICTS[v] for v in mine["verdict"]]},
        customdata=mine["change"],
        hovertemplate="%{customdata}: %{x:.3g} times as fast<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=1, line={"color": "#222222", "width": 1})
    figure.update_yaxes(
        tickvals=list(range(len(mine))), ticktext=names, range=[-0.6, len(mine) - 0.4], ticks=""
    )
    top = max(high.max(), 2.0)
    figure.update_xaxes(
        type="log",
        tickvals=[t for t in TICKS if t <= 1.3 * top],
        ticktext=[f"×{t:g}" for t in TICKS if t <= 1.3 * top],
        title_text="samples a second, in comparison with the training as it is set (blue: faster, "
        "orange: slower, grey: no difference for sure)",
    )
    figure = finish(figure, max(200, ROW * len(mine) + 90), legend=False)
    return figure.update_layout(margin={"l": 360})
