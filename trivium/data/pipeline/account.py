"""Counts of what became of documents: in + added = kept + dropped + merged + quarantined, for every step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trivium.data.documents import Document
from trivium.data.step import Dropped, Merged
from trivium.errors import DataError


@dataclass
class Account:
    """Documents of one step; what left, by reason."""

    entered: int = 0
    added: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    merged: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Account) -> Account:
        self.entered += other.entered
        self.added += other.added
        self.kept += other.kept
        self.dropped += other.dropped
        self.merged += other.merged
        self.quarantined += other.quarantined
        return self

    def check(self) -> None:
        """Nothing is left out in silence."""
        left = self.dropped.total() + self.merged.total() + self.quarantined.total()
        assert self.entered + self.added == self.kept + left, f"the account does not close: {self}"

    def to_json(self) -> dict[str, Any]:
        """The account as it is reported, reasons in order of name."""
        left = {"dropped": self.dropped, "merged": self.merged, "quarantined": self.quarantined}
        counts = {name: dict(sorted(counter.items())) for name, counter in left.items()}
        return {"in": self.entered, "added": self.added, "kept": self.kept, **counts}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Account:
        """The inverse of `to_json`."""
        return Account(
            values["in"],
            values["added"],
            values["kept"],
            *(Counter(values[name]) for name in ("dropped", "merged", "quarantined")),
        )


class Ledger:
    """The account of one step while documents pass it, and a line for each one that did not simply pass."""

    def __init__(self) -> None:
        self.account = Account()
        self.lines: list[bytes] = []

    def enter(self, document: Document, result: Any) -> list[Document]:
        """Note what became of a document; returns what goes on."""
        self.account.entered += 1
        if isinstance(result, Document):
            self.account.kept += 1
            return [result]
        if isinstance(result, Dropped):
            self._leave(document, "dropped", result.reason, result.evidence)
            return []
        if isinstance(result, Merged):
            further = {"into": result.into, "similarity": round(result.similarity, 4)}
            self._leave(document, "merged", result.reason, f"like {result.into}", **further)
            return []
        if isinstance(result, DataError):
            self._leave(document, "quarantined", result.problem, result.render())
            return []
        if not result:
            self._leave(document, "dropped", "nothing took its place", "")
            return []
        self.account.kept += len(result)
        self.account.added += len(result) - 1
        for new in result:
            if new.id != document.id:
                self._note(new.id, "added", f"made from {document.id}", "", parent=document.id)
        return list(result)

    def _leave(self, document: Document, outcome: str, reason: str, evidence: str, **further: Any) -> None:
        counted: Counter[str] = getattr(self.account, outcome)
        counted[reason] += 1
        self._note(document.id, outcome, reason, evidence, **further)

    def _note(self, name: str, outcome: str, reason: str, evidence: str, **further: Any) -> None:
        self.lines.append(to_line({"id": name, "outcome": outcome, "reason": reason, "evidence": evidence, **further}))


def to_line(row: Mapping[str, Any]) -> bytes:
    """A row of a JSON Lines file."""
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
