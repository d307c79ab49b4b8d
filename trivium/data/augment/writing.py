"""Texts rewritten by an encoder-decoder, sentence by sentence, with what it once wrote kept on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trivium.artifacts.manifest import content_hash
from trivium.artifacts.writer import JsonLines
from trivium.config import StrictModel
from trivium.data.augment.step import Augmentation
from trivium.errors import ConfigError

_SENTENCE = re.compile(r"""[^\n]+?(?:[.!?…]["'”’)\]]*(?=\s)|(?=\n)|\Z)""")  # noqa: RUF001


class Decoding(Augmentation):
    """Settings of the steps that let a model write."""

    unit: Literal["sentence", "text"] = "sentence"
    """What the model reads at once; what is too long for it stays as it is."""
    beams: int = Field(4, ge=1, le=64)
    """Beginnings that beam search follows; the children are its best answers. Not used with a temperature."""
    temperature: float = Field(0.0, ge=0)
    """Above 0: draw the answers instead, each child its own."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Of a temperature: draw among the most likely tokens that together reach this probability."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer to one unit."""
    batch: int = Field(32, ge=1)
    """Answers computed side by side."""
    cache: str | None = None
    """Folder in which answers are kept, so that the same text is written once; default: nothing is kept."""


@dataclass(frozen=True)
class Answer:
    """What a model made of a text. ended: it came to its end, and was not cut off."""

    text: str
    ended: bool


class Writer:
    """An encoder-decoder that answers texts.

    folder: the model.  prefix: put before each text (T5's `paraphrase: `).
    """

    def __init__(self, folder: str, prefix: str, decoding: Decoding, *, seed: int, where: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._decoding = decoding
        self._where = where
        self._seed = int.from_bytes(hashlib.sha256(f"writer\0{seed}".encode()).digest()[:4], "little")

    @cached_property
    def model(self) -> Any:
        """The model, loaded when it is first needed."""
        import trivium

        model = trivium.load(self._folder)
        if model.module.config.kind != "encoder_decoder":
            raise ConfigError(
                "texts are rewritten by an encoder-decoder",
                where=self._where,
                value=f"{self._folder}: {model.module.config.kind}",
                fix="name a model trained with seq2seq, or a T5, BART or Marian-like folder",
            )
        return model

    def answers(self, texts: Sequence[str], count: int) -> list[list[Answer]]:
        """`count` answers to each text; none to one that is too long for the model."""
        known = self._known
        missing = [text for text in dict.fromkeys(texts) if self._key(text, count) not in known]
        readable = [text for text in missing if self._fits(text)]
        for text in set(missing) - set(readable):
            known[self._key(text, count)] = []
        if readable:
            prompts = [self._prefix + text for text in readable]
            found = self.model.generate(prompts, n=count, details=True, **self._options(count))
            for text, given in zip(readable, found, strict=True):
                group = given if count > 1 else [given]
                self._keep(text, count, [Answer(each.text.strip(), each.finish_reason == "eos") for each in group])
        return [known[self._key(text, count)] for text in texts]

    def likelihoods(self, texts: Sequence[str], sources: Sequence[str]) -> list[float]:
        """Mean log-probability of a token of each text as an answer to its source, in nats."""
        scores = self.model.score(list(texts), source=[self._prefix + source for source in sources])
        return [round(score.total / len(score.ids), 4) for score in scores]

    def _options(self, count: int) -> dict[str, Any]:
        settings = self._decoding
        shared = {"max_new_tokens": settings.max_new_tokens, "max_rows": settings.batch, "seed": self._seed}
        if settings.temperature > 0:
            return {**shared, "num_beams": 1, "temperature": settings.temperature, "top_p": settings.top_p}
        beams = max(settings.beams, count)
        return {**shared, "num_beams": beams, **({"temperature": 0} if beams == 1 else {})}

    def _fits(self, text: str) -> bool:
        config = self.model.module.config
        room = 1 << 30 if config.positions == "relative" else config.max_positions
        return len(self.model.tokenizer.encode(self._prefix + text)) + 4 <= room

    # What was written before

    @cached_property
    def _identity(self) -> str:
        depends = [content_hash(Path(self._folder).expanduser()), self._prefix, self._options(1), self._seed]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]

    @cached_property
    def _known(self) -> dict[str, list[Answer]]:
        found: dict[str, list[Answer]] = {}
        if self._decoding.cache is not None:
            for path in sorted(Path(self._decoding.cache).expanduser().glob(f"{self._identity}-*.jsonl")):
                for row in JsonLines(path).read():
                    found[row["key"]] = [Answer(text, ended) for text, ended in row["answers"]]
        return found

    @cached_property
    def _kept(self) -> JsonLines | None:
        """The file of this process: several workers never write into one."""
        folder = self._decoding.cache
        return (
            None if folder is None else JsonLines(Path(folder).expanduser() / f"{self._identity}-{os.getpid()}.jsonl")
        )

    def _keep(self, text: str, count: int, answers: list[Answer]) -> None:
        key = self._key(text, count)
        self._known[key] = answers
        if self._kept is not None:
            self._kept.append({"key": key, "answers": [[answer.text, answer.ended] for answer in answers]})

    def _key(self, text: str, count: int) -> str:
        return hashlib.sha256(f"{count}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Model(StrictModel):
    """A model folder and the text it wants before each source."""

    path: str
    """Folder of an encoder-decoder."""
    prefix: str = ""
    """Put before each text."""


@dataclass(frozen=True)
class Units:
    """A text as pieces that a model rewrites, and what stands between them.

    between: one more than there are units; what is before, between and behind them.
    """

    units: tuple[str, ...]
    between: tuple[str, ...]

    def joined(self, units: Sequence[str]) -> str:
        """The text with other units in their places."""
        pieces = [self.between[0]]
        for unit, behind in zip(units, self.between[1:], strict=True):
            pieces += [unit, behind]
        return "".join(pieces)


def units_of(text: str, unit: str) -> Units:
    """The sentences of a text (lines are never joined), or the text as a whole."""
    spans = [match.span() for match in _SENTENCE.finditer(text)] if unit == "sentence" else [(0, len(text))]
    spans = [_stripped(text, *span) for span in spans]
    spans = [(start, end) for start, end in spans if any(map(str.isalnum, text[start:end]))]
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    between = tuple(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    return Units(tuple(text[start:end] for start, end in spans), between)


def nth_answers(units: Sequence[str], answers: Sequence[Sequence[Answer]], number: int) -> list[str]:
    """Each unit's answer of this number; the unit itself where there is none, or the model did not finish it."""
    return [
        each[number].text if number < len(each) and each[number].ended and each[number].text else unit
        for unit, each in zip(units, answers, strict=True)
    ]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
