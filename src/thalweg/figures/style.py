"""How every figure looks."""

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

__all__ = ["COLORS", "DASHES", "SYMBOLS", "finish", "shade"]

# What tells levels of a factor apart, where colours are the optimizers'.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon")

# Of Okabe and Ito, which the colour-blind tell apart too, but for the yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")

_INK, _GRID = "#222222", "#e6e6e6"
_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def finish(figure: go.Figure, height: int, legend: bool = True) -> go.Figure:
    """Fonts, grid, legend above if any, ``height`` in pixels; the width is the reader's."""
    figure.update_layout(
        template="none",
        font={"family": _FONT, "size": 13, "color": _INK},
        height=height,
        margin={"l": 70, "r": 20, "t": 80 if legend else 30, "b": 55},
        paper_bgcolor="white",
        plot_bgcolor="white",
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
        hoverlabel={"bgcolor": "white", "font": {"color": _INK}},
    )
    axis = {
        "gridcolor": _GRID,
        "linecolor": "#999999",
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickfont": {"size": 11},
        "title_font": {"size": 12},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(font={"size": 13, "color": _INK})
    return figure


def shade(color: str) -> str:
    """The same colour, nearly transparent, for bands."""
    red, green, blue = hex_to_rgb(color)
    return f"rgba({red}, {green}, {blue}, 0.18)"
