"""Steps for tests of pipelines: every outcome there is, and a process that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Dropped, Merged, Result, Step
from trivium.errors import DataError


class Odd(Step):
    """What becomes of a document stands at the end of its id."""

    class Config(StrictModel):
        pass

    def apply(self, document: Document) -> Result:
        word = document.id.rpartition("-")[2]
        if word == "drop":
            return Dropped("too odd", f"odd: {document.text[:10]}")
        if word == "bad":
            raise DataError("the document is bad", where=document.source)
        if word == "none":
            return []
        if word == "two":
            return [document, replace(document, id=f"{document.id}'", text=document.text[::-1])]
        return replace(document, text=document.text.upper())


class Same(CorpusStep):
    """Of documents that begin with the same letters the first stays."""

    class Config(StrictModel):
        letters: int = 3

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        if any("unsketchable" in document.id for document in documents):
            raise DataError("nothing can be known of this document", where="somewhere")
        return {"begin": "".join(f"{d.id}\t{d.text[: self.config.letters]}\n" for d in documents).encode()}

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[object]:
        seen: dict[str, str] = {}
        decisions = []
        for sketch in sketches:
            rows = [line.split("\t") for line in sketch["begin"].read_text().splitlines()]
            decisions.append([seen.setdefault(begin, name) for name, begin in rows])
        (folder / "seen.txt").write_text("\n".join(sorted(seen)))
        return decisions

    def apply_all(self, documents: Sequence[Document], decision: Sequence[str]) -> list[Result]:
        return [
            document if kept == document.id else Merged(kept, "same begin")
            for document, kept in zip(documents, decision, strict=True)
        ]


class Deadly(Step):
    """Kills its process at a document; `once`: not again after this file was written."""

    class Config(StrictModel):
        id: str
        once: str | None = None

    def apply(self, document: Document) -> Result:
        if document.id == self.config.id and not (self.config.once and Path(self.config.once).exists()):
            if self.config.once:
                Path(self.config.once).write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)
        return document


class Broken(Step):
    """A step with a defect."""

    class Config(StrictModel):
        pass

    def apply(self, document: Document) -> Result:
        raise RuntimeError("a defect of this step")
