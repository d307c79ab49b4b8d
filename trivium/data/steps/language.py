"""The language of each document, noted in its meta; documents in other languages are left out."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.filters.language import guess, known_languages
from trivium.data.step import Dropped, Result, Step
from trivium.errors import ConfigError
from trivium.nearest import nearest


class Language(Step):
    """Writes `language` and `language_probability` into the meta of the documents it keeps."""

    class Config(StrictModel):
        """Settings of `language`."""

        keep: list[str] = Field(default_factory=list)
        """Codes of the languages to keep (ISO 639: en, de, zh); empty: all."""
        least_probability: float = Field(0.5, ge=0, le=1)
        """Leave out documents whose language is less certain."""
        among: list[str] = Field(default_factory=list)
        """The languages that can occur at all; fewer are told apart more surely. Empty: all that are known."""
        characters: int = Field(500, ge=20)
        """How much of the beginning of a document is looked at."""
        trust: bool = False
        """Believe the `language` that a source states, where it states one."""

    def __init__(self, config: Config, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        named = {*config.keep, *config.among}
        unknown = sorted(named.difference(known_languages())) if named else []
        if unknown:
            near = nearest(unknown[0], known_languages())
            raise ConfigError(
                "this language is not known",
                where="language",
                value=unknown[0],
                fix=f"codes of ISO 639 are meant{f', for example {near}' if near else ''}: en, de, fr, zh",
            )

    def apply(self, document: Document) -> Result:
        config = self.config
        stated = document.meta.get("language")
        if config.trust and isinstance(stated, str) and stated:
            code, probability = stated, 1.0
        else:
            code, probability = guess(document.text[: config.characters], tuple(config.among))
        if config.keep and code not in config.keep:
            return Dropped("another language", f"{code} ({probability:.2f}), kept are {', '.join(config.keep)}")
        if probability < config.least_probability:
            return Dropped("language not certain", f"{code} ({probability:.2f}), at least {config.least_probability:g}")
        meta = {**document.meta, "language": code, "language_probability": round(probability, 4)}
        return replace(document, meta=meta)
