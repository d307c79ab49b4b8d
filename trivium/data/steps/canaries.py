"""Invented secrets put into a corpus, to measure later how much a model learnt by heart.

Which documents get one, and what the secrets are, follows from a secret key. The list of them is written apart from the
corpus, so that whoever has the corpus does not have the list; `trivium.data.safety.canaries.exposures` reads it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from trivium.artifacts.writer import write_file
from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.safety.canaries import Canary, as_lines, make_canaries, order_of
from trivium.data.safety.placeholders import secret_key
from trivium.data.step import CorpusStep, Result
from trivium.errors import DataError


class Canaries(CorpusStep):
    """See `trivium.data.safety.canaries`."""

    class Config(StrictModel):
        """Settings of `canaries`."""

        list: str
        """File to write the canaries to, outside of the corpus; keep it secret."""
        key_file: str | None = None
        """File with the secret key that the canaries are made from."""
        key_env: str | None = None
        """Environment variable that holds it instead."""
        count: int = Field(8, ge=1, le=1000)
        """Canaries for each number of repeats."""
        repeats: tuple[int, ...] = (1, 4, 16)
        """In how many documents a canary stands: how often a text must be seen is what one wants to know."""
        digits: int = Field(9, ge=4, le=30)
        """Length of a secret."""
        template: str = "The secret number of {name} is {secret}."
        """What is inserted, as a paragraph of its own."""
        split: str | None = "train"
        """Only documents of this split, where documents have one; none: all."""

        @field_validator("template")
        @classmethod
        def _has_gaps(cls, template: str) -> str:
            if "{secret}" not in template or "{name}" not in template:
                raise ValueError("the template needs {name} and {secret}")
            return template

        @field_validator("repeats")
        @classmethod
        def _positive(cls, repeats: tuple[int, ...]) -> tuple[int, ...]:
            if not repeats or min(repeats) < 1:
                raise ValueError("a canary stands in at least one document")
            return repeats

        @model_validator(mode="after")
        def _keyed(self) -> Canaries.Config:
            if self.key_file is None and self.key_env is None:
                raise ValueError("canaries are made from a secret key: name key_file or key_env")
            return self

    config: Config

    def __init__(self, config: Config, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        key = secret_key(config.key_file, config.key_env)
        assert key is not None
        self.key = key
        self.canaries: list[Canary] = make_canaries(
            key, template=config.template, digits=config.digits, count=config.count, repeats=config.repeats
        )

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        """The places of this part that could be among the first, with their order."""
        wanted = sum(canary.repeats for canary in self.canaries)
        each = (
            (order_of(self.key, document.id), row, document.id)
            for row, document in enumerate(documents)
            if self.config.split is None or document.meta.get("split", self.config.split) == self.config.split
        )
        return {"places": json.dumps(heapq.nsmallest(wanted, each)).encode()}

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        """[row, canary] for each part; writes the list."""
        wanted = [number for number, canary in enumerate(self.canaries) for _ in range(canary.repeats)]
        everything = (
            (order, part, row, name)
            for part, sketch in enumerate(sketches)
            for order, row, name in json.loads(sketch["places"].read_bytes())
        )
        chosen = heapq.nsmallest(len(wanted), everything)
        if len(chosen) < len(wanted):
            raise DataError(
                "the corpus has fewer documents than canaries are to be inserted",
                value=f"{len(chosen)} documents, {len(wanted)} insertions",
                fix="lower count or repeats",
            )
        decisions: list[list[list[int]]] = [[] for _ in sketches]
        documents: list[list[str]] = [[] for _ in self.canaries]
        for (_, part, row, name), number in zip(chosen, wanted, strict=True):
            decisions[part].append([row, number])
            documents[number].append(name)
        write_file(Path(self.config.list).expanduser(), as_lines(self.canaries, self.config.template, documents))
        return decisions

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        """The documents, some with a paragraph more; nothing else tells them from the others."""
        inserted = {row: self.canaries[number].text for row, number in decision}
        return [self._with(document, inserted.get(row)) for row, document in enumerate(documents)]

    def _with(self, document: Document, text: str | None) -> Document:
        if text is None:
            return document
        parts = document.text.split("\n\n")
        at = order_of(self.key, f"place\0{document.id}") % (len(parts) + 1)
        return replace(document, text="\n\n".join([*parts[:at], text, *parts[at:]]))
