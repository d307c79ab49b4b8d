"""What a step of a data pipeline is: one document at a time, or a decision over the whole corpus.

`data/steps/<name>.py` is the registry: a file with one public class, derived from `Step` or `CorpusStep`, with a nested
`Config`. A step is made anew in every worker process from its settings, so what it does may depend on nothing but
these and the documents: then the result is the same for any number of workers and after any restart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.errors import DataError


@dataclass(frozen=True)
class Dropped:
    """A document that is left out.

    reason:   one of a few fixed phrases of the step ("too few words"): it is what is counted.
    evidence: what was measured in this document and the limit ("41 words, at least 50"), or an excerpt.
    """

    reason: str
    evidence: str = ""


@dataclass(frozen=True)
class Merged:
    """A document that is left out because another one stands for it: the id of that one, and how alike they are."""

    into: str
    reason: str
    similarity: float = 1.0


Result = Document | Sequence[Document] | Dropped | Merged | DataError
"""The document (changed or not), several that take its place (counted as added), that it is left out, or set aside."""


def listed(value: Any) -> Any:
    """For a setting that takes one text or several: always a list."""
    return [value] if isinstance(value, str) else value


class _AnyStep:
    Config: ClassVar[type[StrictModel]]
    """Settings; every subclass defines its own."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        self.config = config
        self.seed = seed

    def parents(self) -> Sequence[Path]:
        """Artifacts the step reads (a model folder, a sealed set): part of the lineage and of what is cached."""
        return ()


class Step(_AnyStep, ABC):
    """Looks at documents alone. Override `apply`, or `apply_all` where many at once are faster (a model)."""

    @abstractmethod
    def apply(self, document: Document) -> Result:
        """What becomes of one document. A DataError quarantines it (or stops, `on_error: error`)."""

    def apply_all(self, documents: Sequence[Document]) -> list[Result]:
        """One result for each document, in order; how they are grouped must not matter."""
        return [self.apply(document) for document in documents]


class CorpusStep(_AnyStep, ABC):
    """Decides about each document with all of them in view, in three passes: sketch, decide, apply."""

    @abstractmethod
    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        """What must be known of one part of the corpus, by name; small, made in a worker."""

    @abstractmethod
    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        """One decision for each part (JSON values), from the sketches of all parts in order; runs once.

        folder: where reports of the step may be written (clusters.jsonl); it becomes part of the artifact.
        """

    @abstractmethod
    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        """One result for each document of a part, in order, given the decision for that part."""
