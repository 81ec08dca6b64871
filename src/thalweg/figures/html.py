"""Figures as HTML that opens offline."""

from html import escape

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

__all__ = ["embed", "page"]

_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}
_STYLE = """
  body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
         color: #222; background: #fff; max-width: 1180px; margin: 0 auto; padding: 24px; }
  h1 { font-size: 1.25rem; margin: 0 0 .4rem; }
  p { color: #444; max-width: 75ch; margin: .2rem 0 .8rem; }
  .box { overflow-x: auto; } .figure { min-width: 860px; }
"""


def embed(figure: go.Figure, name: str) -> Markup:
    """The figure as a part of a page that has plotly's script."""
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config=_CONFIG,
            default_width="100%",
            div_id=name,
        )
    )


def page(title: str, caption: str, figure: go.Figure) -> str:
    """A whole page with one figure."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(caption)}</p>
<div class="box"><div class="figure">{embed(figure, "figure")}</div></div>
</body>
</html>
"""
