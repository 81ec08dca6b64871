"""Figures as HTML that opens offline."""

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

__all__ = ["embed", "listed", "page", "table"]

_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}
_STYLE = """
  body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
         color: #222; background: #fff; max-width: 1180px; margin: 0 auto; padding: 24px; }
  h1 { font-size: 1.25rem; margin: 0 0 .4rem; }
  p { color: #444; max-width: 75ch; margin: .2rem 0 .8rem; }
  .lead { color: #222; font-size: 1.15rem; font-weight: 600; }
  h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
  th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid #e3e3e3; }
  th { vertical-align: bottom; border-bottom: 2px solid #888; }
  th:first-child, td:first-child { text-align: left; }
  table.text th, table.text td { text-align: left; vertical-align: top; min-width: 5.5rem; }
  .box { overflow-x: auto; } .figure { min-width: 860px; }
"""


def embed(figure: go.Figure, name: str) -> Markup:
    """The figure as a part of a page that has plotly's script."""
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            auto_play=False,
            config=_CONFIG,
            default_width="100%",
            div_id=name,
        )
    )


def page(title: str, lead: str, parts: Sequence[tuple[str, str, go.Figure | Markup]]) -> str:
    """A whole page.

    Args:
        title: of the page.
        lead: a sentence under it.
        parts: a heading, maybe empty, a caption and a figure or a table each.
    """
    body = "".join(
        f"{f'<h2>{escape(heading)}</h2>' if heading else ''}"
        f"{f'<p>{escape(caption)}</p>' if caption else ''}"
        f'<div class="box">{_part(part, f"part{i}")}</div>'
        for i, (heading, caption, part) in enumerate(parts)
    )
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
<p class="lead">{escape(lead)}</p>
{body}
</body>
</html>
"""


def _part(part: go.Figure | Markup, name: str) -> Markup:
    if isinstance(part, Markup):
        return part
    return Markup('<div class="figure">{}</div>').format(embed(part, name))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> Markup:
    """A table; all but its first column are set to the right, or none if it is of sentences."""
    line = Markup("<tr>{}</tr>").format
    cells = (Markup("").join(Markup("<td>{}</td>").format(c) for c in row) for row in rows)
    head = line(Markup("").join(Markup('<th scope="col">{}</th>').format(h) for h in heads))
    body = Markup("").join(map(line, cells))
    kind = Markup(' class="text"') if text else ""
    return Markup("<table{}><thead>{}</thead><tbody>{}</tbody></table>").format(kind, head, body)


def listed(sentences: Sequence[str]) -> Markup:
    """Sentences, one below the other."""
    return Markup("").join(Markup("<p>{}</p>").format(one) for one in sentences)
