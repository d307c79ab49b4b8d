"""The comparison of a corpus before and after cleaning, as a page."""

from __future__ import annotations

from collections.abc import Sequence

from trivium.data.safety.audit import Audit, Row
from trivium.report.render import percent, render
from trivium.report.story import Figure

_HEAD = ("", "documents", "lost", "share lost", "95 % interval", "rest", "difference", "95 % interval", "beyond chance")


def audit_page(result: Audit) -> bytes:
    """One HTML file."""
    kinds = list(dict.fromkeys(row.kind for row in result.rows))
    flagged = [row for row in result.rows if row.flag == "more"]
    figures = [
        Figure("Documents before", f"{result.documents:,}"),
        Figure("Lost", f"{result.lost:,}", percent(result.lost / max(result.documents, 1), 1)),
        Figure("Parts compared", f"{len(result.rows)}"),
        Figure("Lost more than the rest", f"{len(flagged)}", _first(flagged)),
    ]
    sections = [
        {
            "id": kind,
            "title": f"By {kind}",
            "body": _body(result.rows, kind),
            "few": ", ".join(result.few.get(kind, ())),
        }
        for kind in kinds
    ]
    redacted = [
        (name, f"{count:,}", ", ".join(result.redactions["shapes"].get(name, ())))
        for name, count in result.redactions.get("counts", {}).items()
    ]
    return render(
        "data_audit.html",
        {
            "title": "Who lost documents",
            "contents": [("top", "Summary"), *((str(one["id"]), str(one["title"])) for one in sections)],
            "figures": figures,
            "notes": list(result.notes),
            "head": _HEAD,
            "sections": sections,
            "reasons": [
                (name, f"{count:,}") for name, count in sorted(result.reasons.items(), key=lambda pair: -pair[1])
            ],
            "redacted": redacted,
        },
    )


def _body(rows: Sequence[Row], kind: str) -> list[tuple[str, ...]]:
    return [_cells(row) for row in rows if row.kind == kind]


def _cells(row: Row) -> tuple[str, ...]:
    flag = {"more": "more lost", "less": "less lost", "": "\u2013"}[row.flag]
    return (
        row.name,
        f"{row.documents:,}",
        f"{row.lost:,}",
        percent(row.share, 1),
        f"{percent(row.low, 1)} to {percent(row.high, 1)}",
        percent(row.rest, 1),
        _signed(row.difference),
        f"{_signed(row.difference_low)} to {_signed(row.difference_high)}",
        flag + (", below four fifths" if row.four_fifths else ""),
    )


def _signed(share: float) -> str:
    return f"{'+' * (share >= 0)}{percent(share, 1)}"


def _first(rows: Sequence[Row], count: int = 4) -> str:
    more = f", and {len(rows) - count} more" * (len(rows) > count)
    return ", ".join(row.name for row in rows[:count]) + more
