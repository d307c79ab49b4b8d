"""One spelling of the same characters, plain white space, nothing empty."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.cleaning import clean
from trivium.data.documents import Document
from trivium.data.step import Dropped, Result, Step


class Clean(Step):
    """See `trivium.data.cleaning`."""

    class Config(StrictModel):
        """Settings of `clean`."""

        least_characters: int = Field(1, ge=1)
        """Shorter texts are left out."""

    def apply(self, document: Document) -> Result:
        text = clean(document.text)
        if not text:
            return Dropped("empty text")
        if len(text) < self.config.least_characters:
            return Dropped("too short", f"{len(text)} characters, at least {self.config.least_characters}")
        return replace(document, text=text)
