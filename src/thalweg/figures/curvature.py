"""The pictures of curvature: data in, figure out; nothing is computed here."""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from thalweg.figures.style import finish, shade

__all__ = ["spectral_density"]

BLUE, ORANGE = "#0072b2", "#d55e00"
DECADES = 7  # below the highest point, beyond which a normal curve's tail says nothing


def spectral_density(curve: pd.DataFrame, eigenvalues: Sequence[float] = ()) -> go.Figure:
    """How the eigenvalues of a Hessian are distributed, on a logarithmic scale.

    Args:
        curve: a row a point: ``eigenvalue, density, error``, a standard error.
        eigenvalues: computed one by one, to be marked.
    """
    x, density, error = curve["eigenvalue"], curve["density"], curve["error"]
    top = math.log10(density.max())
    bottom = 10 ** (top - DECADES)
    nothing = bottom / 1e3  # out of sight; a logarithm has no zero
    low, high = (density - error).clip(lower=nothing), (density + error).clip(lower=nothing)
    figure = go.Figure()
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=shade(BLUE),
        mode="none",
        hoverinfo="skip",
        name="within its standard error",
    )
    figure.add_scatter(
        x=x,
        y=density.clip(lower=nothing),
        mode="lines",
        line={"color": BLUE, "width": 1.8},
        name="density of eigenvalues",
        hovertemplate="eigenvalue %{x:.4g}<br>density %{y:.3g}<extra></extra>",
    )
    if len(eigenvalues):
        figure.add_scatter(
            x=list(eigenvalues),
            y=[1.5 * bottom] * len(eigenvalues),
            mode="markers",
            marker={"symbol": "line-ns", "size": 18, "line": {"color": ORANGE, "width": 2}},
            name="eigenvalues, computed one by one",
            hovertemplate="eigenvalue %{x:.6g}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "#777777", "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="eigenvalue of the Hessian")
    figure.update_yaxes(
        title_text="density",
        type="log",
        exponentformat="power",
        dtick=1,
        range=[top - DECADES, top + 0.4],
    )
    return finish(figure, 420)
