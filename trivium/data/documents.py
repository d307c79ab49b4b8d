"""A document as every source yields it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """One text.

    id:      names the document for good, inside its source.
    text:    what is learnt.
    source:  where it was read: `file`, `file:line` or the name of a built-in source.
    licence: as stated by the source; None where it states nothing.
    meta:    further JSON values. These names mean the same everywhere: `group` (a string: what must never be cut in two
             by a split: a module, a book), `title`, `date` (ISO 8601), `author`, `url`, `language` (ISO 639-1),
             `sections` (a list of [level, title] in the order of the text, where they stand as "## Title" lines),
             `parent` (the id of the document this one was made from), `split`.
    """

    id: str
    text: str
    source: str
    licence: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """What this document belongs to when data is split; itself if nothing is stated."""
        return str(self.meta.get("group", self.id))
