"""A lineage graph as a picture: inline SVG without scripts or outside resources.

It is dark on a page whose `color-scheme` is dark, light on any other.
"""

from __future__ import annotations

import re
from html import escape

from trivium.artifacts.graph import Edge, Graph, Node
from trivium.artifacts.layout import Layout, Slot, lay_out

_WIDTH, _HEIGHT = 184.0, 60.0
_SLOT, _GAP, _BETWEEN, _MARGIN = 18.0, 14.0, 66.0, 3.0
_LABEL_HEIGHT, _LABEL_CHARACTER = 13.0, 6.2
_NAME_CHARACTERS = 21
_HUES = {"model": 212, "checkpoint": 186, "tokenizer": 282, "adapter": 150, "tokens": 32, "dataset": 32, "index": 330}
_STYLE = """
.lineage{--paper:#fff;--ink:#1c2430;--faint:#667085;--line:#98a2b3;--bad:#c4320a;max-width:100%;height:auto;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.lineage .box{fill:hsl(var(--hue) 55% 96%);stroke:hsl(var(--hue) 45% 55%)}
@supports(color:light-dark(#fff,#000)){.lineage{--paper:light-dark(#fff,#14181f);--ink:light-dark(#1c2430,#e6eaf0);
--faint:light-dark(#667085,#98a2b3);--line:light-dark(#98a2b3,#667085);--bad:light-dark(#c4320a,#ff8f6b)}
.lineage .box{fill:light-dark(hsl(var(--hue) 55% 96%),hsl(var(--hue) 45% 17%))}}
.lineage .start .box{stroke-width:2.5}.lineage .bad .box{stroke:var(--bad);stroke-dasharray:5 3}
.lineage text{fill:var(--ink);font-size:12px}.lineage .kind{font-size:10.5px;fill:var(--faint)}
.lineage .bad .kind{fill:var(--bad);font-weight:600}.lineage .name{font-weight:600}
.lineage .more{font-size:10.5px;fill:var(--faint)}.lineage path{fill:none;stroke:var(--line);stroke-width:1.4}
.lineage .role{font-size:10.5px;text-anchor:middle;paint-order:stroke;stroke:var(--paper);stroke-width:4px}
"""
_TOLD = ("moved", "changed", "missing")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Lineage of {title}</title>
<style>:root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:70rem;
padding:0 1rem;background:#fff;color:#1c2430}}@media(prefers-color-scheme:dark){{body{{background:#14181f;
color:#e6eaf0}}}}
h1{{font-size:1.3rem}}.rows{{overflow-x:auto}}table{{border-collapse:collapse;font-size:.85rem;margin-top:1.5rem}}
th,td{{text-align:left;padding:.25rem .8rem .25rem 0;white-space:nowrap}}th{{border-bottom:1px solid #98a2b3}}
code{{font-size:.95em}}</style></head>
<body><h1>Lineage of {title}</h1>
<p>Parents stand above what was made from them. A dashed frame: the parent is missing, or has changed since.</p>
{figure}
<div class="rows"><table><thead>
<tr><th>kind</th><th>name</th><th>content</th><th>created</th><th>seed</th><th>state</th>
</tr></thead><tbody>
{rows}
</tbody></table></div></body></html>
"""


def render_svg(graph: Graph, *, columns: int = 4) -> str:
    """The graph as one `<svg>` element, at most `columns` nodes wide; it can stand in a page or be a file."""
    keys = [node.key for node in graph.nodes]
    edges = [(edge.parent, edge.child) for edge in graph.edges]
    layout = lay_out(keys, edges, columns=columns, width=_WIDTH, slot_width=_SLOT, gap=_GAP)
    tops = {slot: row * (_HEIGHT + _BETWEEN) + _MARGIN for row, slots in enumerate(layout.layers) for slot in slots}
    wide = max(x + (_WIDTH if isinstance(slot, str) else _SLOT) / 2 for slot, x in layout.centre.items())
    width, height = wide + 2 * _MARGIN, max(tops.values()) + _HEIGHT + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" role="img" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" aria-label="lineage of {escape(graph.nodes[0].name)}">',
        f"<style>{_STYLE}</style>",
        *_edges(graph.edges, layout, tops),
        *(_box(node, layout.centre[node.key], tops[node.key], start=node is graph.nodes[0]) for node in graph.nodes),
        "</svg>",
    ]
    return "\n".join(lines)


def render_figure(graph: Graph) -> str:
    """An HTML fragment with the graph drawn twice: four nodes wide, and two for narrow windows, which see only that."""
    return (
        "<style>.lineage-figure{overflow-x:auto}.lineage-figure .for-narrow{display:none}"
        "@media(max-width:640px){.lineage-figure .for-narrow{display:block}.lineage-figure .for-wide{display:none}"
        ".lineage-figure .lineage{max-width:none}}"
        "</style>"
        f'<div class="lineage-figure"><div class="for-wide">{render_svg(graph)}</div>'
        f'<div class="for-narrow">{render_svg(graph, columns=2)}</div></div>'
    )


def render_html(graph: Graph) -> str:
    """A page of its own, complete and offline: the picture and a table of all artifacts."""
    rows = "\n".join(
        f"<tr><td>{escape(node.kind)}</td><td>{escape(node.name)}</td><td><code>{node.hash[:12]}</code></td>"
        f"<td>{escape(_date(node))}</td><td>{'' if node.seed is None else node.seed}</td><td>{node.state}</td></tr>"
        for node in graph.nodes
    )
    return _PAGE.format(title=escape(graph.nodes[0].name), figure=render_figure(graph), rows=rows)


def _box(node: Node, x: float, y: float, *, start: bool) -> str:
    bad = node.state in ("missing", "changed")
    classes = " ".join(["node", *(["start"] if start else []), *(["bad"] if bad else [])])
    left = x + _MARGIN - _WIDTH / 2
    kind = f"{node.kind} · {node.state}" if node.state in _TOLD else node.kind
    more = " · ".join(filter(None, (node.hash[:8], _date(node))))
    title = f"{node.kind} {node.path}\n{node.hash}\n{node.created}"
    return (
        f'<g class="{classes}" style="--hue:{_HUES.get(node.kind, 220)}"><title>{escape(title)}</title>'
        f'<rect class="box" x="{left:.1f}" y="{y:.1f}" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" rx="7"/>'
        f'<text class="kind" x="{left + 10:.1f}" y="{y + 17:.1f}">{escape(kind)}</text>'
        f'<text class="name" x="{left + 10:.1f}" y="{y + 34:.1f}">{escape(_short(node.name))}</text>'
        f'<text class="more" x="{left + 10:.1f}" y="{y + 50:.1f}">{escape(more)}</text></g>'
    )


def _edges(edges: list[Edge], layout: Layout, tops: dict[Slot, float]) -> list[str]:
    """One curve for each (parent, child), then the roles, which must not be crossed by later curves."""
    roles: dict[tuple[str, str], list[str]] = {}
    for edge in edges:
        roles.setdefault((edge.parent, edge.child), []).append(edge.role)
    curves, labels, taken = [], [], list[tuple[float, float, float]]()
    for pair, names in roles.items():
        chain = layout.chains[pair]
        leave = _port(pair[0], chain[1], [layout.chains[p][1] for p in roles if p[0] == pair[0]], layout)
        arrive = _port(pair[1], chain[-2], [layout.chains[p][-2] for p in roles if p[1] == pair[1]], layout)
        x, y = leave, tops[chain[0]] + _HEIGHT
        path = [f"M{x:.1f} {y:.1f}"]
        for slot in chain[1:]:
            end = arrive if slot == chain[-1] else layout.centre[slot] + _MARGIN
            top = tops[slot]
            path.append(f"C{x:.1f} {y + _BETWEEN / 2:.1f} {end:.1f} {top - _BETWEEN / 2:.1f} {end:.1f} {top:.1f}")
            if slot == chain[1]:
                labels.append(_label(", ".join(names), (x, y), (end, top), taken))
            if slot != chain[-1]:
                path.append(f"V{top + _HEIGHT:.1f}")
            x, y = end, top + _HEIGHT
        curves.append(f'<path d="{" ".join(path)}"/>')
    return curves + labels


def _port(node: str, neighbour: Slot, neighbours: list[Slot], layout: Layout) -> float:
    """Where on the side of a node an edge begins or ends: side by side, in the order of the other ends."""
    order = sorted(set(neighbours), key=lambda slot: layout.centre[slot])
    step = min(_WIDTH / (len(order) + 1), 40.0)
    return layout.centre[node] + _MARGIN + (order.index(neighbour) - (len(order) - 1) / 2) * step


def _label(
    text: str, start: tuple[float, float], end: tuple[float, float], taken: list[tuple[float, float, float]]
) -> str:
    """The role on its curve, at the first of some places where it covers no other."""
    half = len(text) * _LABEL_CHARACTER / 2
    for part in (0.5, 0.3, 0.7, 0.14, 0.86):
        bend = 3 * part**2 - 2 * part**3  # the curve's horizontal progress at this height, nearly
        x, y = start[0] + (end[0] - start[0]) * bend, start[1] + (end[1] - start[1]) * part
        if all(abs(x - other) > half + width or abs(y - line) >= _LABEL_HEIGHT for other, line, width in taken):
            break
    taken.append((x, y, half))
    return f'<text class="role" x="{x:.1f}" y="{y + 4:.1f}">{escape(text)}</text>'


def _short(name: str) -> str:
    """The end of a path is what tells it from others."""
    parts = [part for part in name.rstrip("/").split("/") if part != "checkpoints"]
    tail = re.sub(r"step-0+(?=\d)", "step-", "/".join(parts[-3:] if parts[-1] == "model" else parts[-2:]))
    if len(tail) <= _NAME_CHARACTERS:
        return tail
    half = (_NAME_CHARACTERS - 1) // 2
    return f"{tail[:half]}…{tail[-half:]}"


def _date(node: Node) -> str:
    return node.created[:16].replace("T", " ")
