"""Lines of sites instead of pages are taken out: those that many documents of a site share, and the usual phrases."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from trivium.artifacts.writer import write_file
from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.filters.boilerplate import counted, frequent, is_phrase, line_key, site_key, site_of
from trivium.data.filters.words import lines_of
from trivium.data.step import CorpusStep, Dropped, Result

_SHOWN = 1000


class Boilerplate(CorpusStep):
    """Counts in how many documents of its site each line stands, over the whole corpus.

    Writes boilerplate.jsonl: the most frequent of the lines that are taken out, with their number of documents.
    """

    class Config(StrictModel):
        """Settings of `boilerplate`."""

        by: Literal["host", "file", "corpus"] = "host"
        """What shares its lines: documents of one host (`meta.url`; those without are one site), file, or all."""
        least_documents: int = Field(10, ge=2)
        """A line in fewer documents of its site stays."""
        least_share: float = Field(0.05, ge=0, le=1)
        """A line in a smaller share of the documents of its site stays."""
        longest_line: int = Field(300, ge=1)
        """Longer lines stay in any case: they are text that was copied, which deduplication handles."""
        phrases: bool = True
        """Take out lines that are nothing but the usual phrases: cookies, log in, share, copyright (English)."""

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        sites: Counter[str] = Counter()
        keyed: list[tuple[str, set[int]]] = []
        seen: Counter[int] = Counter()
        texts: dict[int, str] = {}
        for document in documents:
            site = site_of(document, self.config.by)
            sites[str(site_key(site))] += 1
            keys = {
                line_key(site, line): line for line in lines_of(document.text) if len(line) <= self.config.longest_line
            }
            keyed.append((site, set(keys)))
            seen.update(keys.keys())
            texts.update(keys)
        lines = io.BytesIO()
        np.save(lines, counted(keyed), allow_pickle=False)
        shown = {str(key): texts[key].strip() for key, number in seen.most_common(_SHOWN) if number > 1}
        facts = {"sites": sites, "texts": shown}
        return {"lines.npy": lines.getvalue(), "facts.json": json.dumps(facts, ensure_ascii=False).encode()}

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        facts = [json.loads(sketch["facts.json"].read_bytes()) for sketch in sketches]
        sites: Counter[int] = Counter()
        texts: dict[int, str] = {}
        for fact in facts:
            sites.update({int(key): number for key, number in fact["sites"].items()})
            texts.update({int(key): text for key, text in fact["texts"].items()})
        files = [sketch["lines.npy"] for sketch in sketches]
        found = frequent(files, sites, least=self.config.least_documents, share=self.config.least_share)
        rows = sorted(zip(found["documents"].tolist(), found["line"].tolist(), strict=True), reverse=True)
        report = (json.dumps({"documents": number, "line": texts.get(key)}, ensure_ascii=False) for number, key in rows)
        write_file(folder / "boilerplate.jsonl", "".join(f"{line}\n" for line in list(report)[:_SHOWN]))
        ordered = np.sort(found["line"])
        return [np.intersect1d(np.load(file, mmap_mode="r")["line"], ordered).tolist() for file in files]

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        shared = frozenset(decision)
        return [self._without(document, shared) for document in documents]

    def _without(self, document: Document, shared: frozenset[int]) -> Result:
        site = site_of(document, self.config.by)
        lines = document.text.split("\n")
        kept = [line for line in lines if not self._is_boilerplate(line, site, shared)]
        if len(kept) == len(lines):
            return document
        text = "\n".join(kept).strip("\n")
        if not text.strip():
            return Dropped("nothing but boilerplate", next(iter(lines_of(document.text)), "")[:100])
        return replace(document, text=text)

    def _is_boilerplate(self, line: str, site: str, shared: frozenset[int]) -> bool:
        if not line or line.isspace():
            return False
        if self.config.phrases and is_phrase(line.strip()):
            return True
        return len(line) <= self.config.longest_line and bool(shared) and line_key(site, line) in shared
