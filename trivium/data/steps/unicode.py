"""Repair of mangled characters: UTF-8 that was read as something else, HTML entities, odd forms of letters."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.cleaning import clean
from trivium.data.documents import Document
from trivium.data.filters.repair import Form, repair
from trivium.data.filters.words import ratio_of
from trivium.data.step import Dropped, Result, Step


class Unicode(Step):
    """See `trivium.data.filters.repair`; what comes out is also clean (`trivium.data.cleaning`)."""

    class Config(StrictModel):
        """Settings of `unicode`."""

        mojibake: bool = True
        """Repair text that was decoded in a wrong encoding."""
        entities: bool = True
        """Write out HTML entities (&amp;), in lines that hold no tags."""
        straight_quotes: bool = False
        """Make curly quotation marks straight."""
        form: Form = "NFC"
        """Unicode's composed form; `NFKC` also replaces variants (full width, ligatures, superscripts); or `none`."""
        most_unreadable: float | None = Field(0.01, ge=0, le=1)
        """Leave out documents with a larger share of characters that could not be read (U+FFFD)."""

    def apply(self, document: Document) -> Result:
        config = self.config
        text = repair(
            document.text,
            mojibake=config.mojibake,
            entities=config.entities,
            quotes=config.straight_quotes,
            form=config.form,
        )
        text = clean(text, compose=config.form != "none")
        if not text:
            return Dropped("empty text")
        unreadable = text.count("\ufffd") / len(text)
        if config.most_unreadable is not None and unreadable > config.most_unreadable:
            return Dropped(
                "unreadable characters", ratio_of(unreadable, "of the characters", "at most", config.most_unreadable)
            )
        return replace(document, text=text)
