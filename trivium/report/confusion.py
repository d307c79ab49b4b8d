"""The confusion matrix as a picture: rows are the truth, columns what the model said, darker is more of the row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from trivium.report.render import visible

MOST_LABELS = 30
"""Labels that are drawn; the others, the rarest, are one row and column together."""
_LETTER = 7.0
"""Width of a letter, about."""
_LONGEST = 18
"""Letters of a label that are shown."""

_STYLE = (
    "text{font:13px system-ui,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif;fill:#1d2127}"
    ".soft{fill:#565d66}.cell{fill:#2b5f94}.rim{fill:none;stroke:#e3dfd5}.on{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#e7e5e0}.soft{fill:#a4aab3}.cell{fill:#84b4e6}.rim{stroke:#31363e}"
    ".on,.mid{fill:#15171b}}"
)


def confusion_picture(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    """An SVG for the report, which brings the colours."""
    return Markup(_svg(*_most_frequent(labels, matrix), style=""))


def confusion_file(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """An SVG file of its own."""
    picture = _svg(*_most_frequent(labels, matrix), style=f"<style>{_STYLE}</style>")
    return picture.encode(errors="replace").decode()


def _most_frequent(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> tuple[list[str], list[list[int]]]:
    """At most MOST_LABELS of them; the rest are added up."""
    if len(labels) <= MOST_LABELS:
        return list(labels), [list(row) for row in matrix]
    frequent = sorted(range(len(labels)), key=lambda at: -sum(matrix[at]))[: MOST_LABELS - 1]
    groups = [[at] for at in sorted(frequent)]
    groups.append([at for at in range(len(labels)) if at not in set(frequent)])
    names = [*(labels[at] for at in sorted(frequent)), f"{len(groups[-1])} others"]
    return names, [
        [sum(matrix[row][column] for row in rows for column in columns) for columns in groups] for rows in groups
    ]


def _svg(labels: Sequence[str], matrix: Sequence[Sequence[int]], *, style: str) -> str:
    number = len(labels)
    shown = [_short(label) for label in labels]
    widest = max((len(label) for label in shown), default=1)
    digits = max((len(f"{count:,}") for row in matrix for count in row), default=1)
    numbers = number <= 15
    side = max(38.0, digits * 8.0 + 12, min(96.0, 280.0 / number)) if numbers else max(14.0, 460.0 / number)
    left = widest * _LETTER + 34
    slanted = widest * _LETTER > side - 4
    top = (widest * _LETTER * 0.75 if slanted else 16) + 34
    width, height = left + side * number + (widest * _LETTER * 0.75 if slanted else 0) + 6, top + side * number + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" class="confusion" '
        f'style="max-width:{width:.0f}px" role="img" aria-label="{_words(labels, matrix)}">{style}',
        f'<text class="soft" x="{left:.1f}" y="14">said</text>',
        f'<text class="soft" transform="translate(13 {top + side * number / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">true</text>',
    ]
    for at, label in enumerate(shown):
        x, y = left + side * (at + 0.5), top + side * (at + 0.5)
        turned = f' transform="translate({x - 4:.1f} {top - 8:.1f}) rotate(-40)"' if slanted else ""
        place = "" if slanted else f' x="{x:.1f}" y="{top - 8:.1f}" text-anchor="middle"'
        parts.append(f"<text{turned}{place}>{escape(label)}</text>")
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for row, counts in enumerate(matrix):
        parts += _row(row, counts, labels, left=left, y=top + side * row, side=side, numbers=numbers)
    rim = f'<rect class="rim" x="{left:.1f}" y="{top:.1f}" width="{side * number:.1f}" height="{side * number:.1f}"/>'
    return "".join([*parts, rim, "</svg>"])


def _row(
    row: int, counts: Sequence[int], labels: Sequence[str], *, left: float, y: float, side: float, numbers: bool
) -> list[str]:
    """The cells of one true label."""
    total = sum(counts)
    parts = []
    for column, count in enumerate(counts):
        share = count / total if total else 0.0
        x = left + side * column
        title = f"true {visible(labels[row])}, said {visible(labels[column])}: {count:,} ({share:.0%})"
        parts.append(
            f'<g><title>{escape(title)}</title><rect class="cell" x="{x + 1:.1f}" y="{y + 1:.1f}" '
            f'width="{side - 2:.1f}" height="{side - 2:.1f}" rx="3" fill-opacity="{0.04 + 0.96 * share:.3f}"/>'
        )
        if numbers:
            # Letters stay readable in both colour schemes: where the shade is in between, they differ.
            tone = "on" if share > 0.75 else "mid" if share > 0.5 else "" if count else "soft"
            place = f'x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle"'
            parts.append(f'<text class="{tone}" {place}>{count:,}</text>')
        parts.append("</g>")
    return parts


def _short(label: str) -> str:
    plain = " ".join(visible(label).split())
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


def _words(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    total = sum(map(sum, matrix))
    right = sum(row[at] for at, row in enumerate(matrix))
    mixed = [(count, row, at) for row, counts in enumerate(matrix) for at, count in enumerate(counts) if at != row]
    count, true, said = max(mixed, default=(0, 0, 0))
    worst = f"; most often {labels[true]} was taken for {labels[said]}, {count} times" if count else ""
    return escape(visible(f"Confusion matrix of {len(labels)} labels: {right} of {total} right{worst}"), quote=True)
