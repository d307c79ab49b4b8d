"""A document as every source yields it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """One text.

    id:      names the document for good, inside its source.
    text:    what is learnt.
    source:  where it was read: `file`, `file:line` or the name of a built-in source.
    licence: as stated by the source; None where it states nothing.
    meta:    further strings; `group` names what must never be cut in two by a split (a module, a book).
    """

    id: str
    text: str
    source: str
    licence: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """What this document belongs to when data is split; itself if nothing is stated."""
        return self.meta.get("group", self.id)
