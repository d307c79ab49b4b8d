"""Personal data replaced by consistent placeholders.

E-mail addresses, telephone numbers, IP and MAC addresses, payment cards, bank accounts, national ids, passwords in
URLs, keys of services, dates of birth, medical records, names and own patterns: docs/data/privacy-and-safety.md.
Each document keeps as evidence where something stood and what stands there now, never the value itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.safety.national import DEFAULT, REGISTERS
from trivium.data.safety.persons import compiled
from trivium.data.safety.placeholders import secret_key
from trivium.data.safety.redaction import KINDS, Finder, Kind, Redaction
from trivium.data.step import Dropped, Result, Step
from trivium.nearest import nearest


class Redact(Step):
    """See `trivium.data.safety.redaction`."""

    class Config(StrictModel):
        """Settings of `redact`."""

        kinds: list[Kind] = Field(list(KINDS))
        """What is looked for; names need `names` or `name_model`, own kinds `patterns`."""
        style: Literal["tag", "numbered", "fake"] = "numbered"
        """`[EMAIL]`; `[EMAIL_1]`, the same for the same value; or an invented value of the same form."""
        scope: Literal["document", "corpus"] = "document"
        """Where the same value has the same placeholder; `corpus` needs a secret key."""
        key_file: str | None = None
        """File that holds the secret key of `scope: corpus`; it is read, and never stored."""
        key_env: str | None = None
        """Environment variable that holds it instead."""
        regions: list[str] = Field(["US", "GB"])
        """Countries (ISO 3166) whose telephone numbers are also found without country code."""
        national_ids: list[str] = Field(list(DEFAULT))
        """Registers of national ids, by name; the page lists them."""
        medical_record: str | None = None
        """Pattern of the record numbers of your hospital; those after "MRN" and its like are found anyway."""
        patterns: dict[str, str] = Field({})
        """Own kinds: a name, and a regular expression whose group `value`, or all of it, is replaced."""
        names: str | None = None
        """File with names of persons, one a line."""
        name_model: str | None = None
        """Model folder that tags words; what it tags as one of `name_labels` is a name."""
        name_labels: list[str] = Field(["PER", "PERSON"])
        """Tags of persons, without B- and I-."""
        allow: list[str] = Field([])
        """Values that stay, with `*` for anything: `*@my-company.com`."""
        private_addresses: bool = False
        """Also IP addresses of private networks, which lead to nobody."""
        assigned_secrets: bool = True
        """Also random values after `password =`, `api_key:` and their like."""
        born_after: int = Field(1900, ge=0)
        """Dates of birth of earlier years are history and stay."""
        evidence: Literal["places", "counts", "none"] = "places"
        """What each document keeps in `meta.redactions`: places, placeholders and shapes; counts; or nothing."""
        most_share: float = Field(1.0, gt=0, le=1)
        """A document of which more is personal data (a directory, a leaked table) is left out."""

        @field_validator("national_ids")
        @classmethod
        def _known(cls, names: list[str]) -> list[str]:
            for name in names:
                if name not in REGISTERS:
                    near = nearest(name, REGISTERS)
                    raise ValueError(f"{name!r} is not known; " + (f"did you mean {near}?" if near else "see the page"))
            return names

        @field_validator("patterns")
        @classmethod
        def _readable(cls, patterns: dict[str, str]) -> dict[str, str]:
            for kind, pattern in patterns.items():
                compiled(kind, pattern)
            return patterns

        @model_validator(mode="after")
        def _keyed(self) -> Redact.Config:
            named = self.key_file is not None or self.key_env is not None
            if self.scope == "corpus" and self.style != "tag" and not named:
                raise ValueError("scope: corpus needs a secret key: name key_file or key_env")
            if named and self.scope == "document":
                raise ValueError("a key does nothing with scope: document; set scope: corpus")
            return self

    config: Config

    def __init__(self, config: Config, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        finder = Finder(
            kinds=config.kinds,
            regions=config.regions,
            national_ids=config.national_ids,
            patterns=config.patterns,
            medical_record=config.medical_record,
            names=config.names,
            name_model=config.name_model,
            name_labels=config.name_labels,
            allow=config.allow,
            private_addresses=config.private_addresses,
            assigned_secrets=config.assigned_secrets,
            born_after=config.born_after,
        )
        key = secret_key(config.key_file, config.key_env) if config.scope == "corpus" else None
        self.redaction = Redaction(finder, config.style, key, seed)

    def apply(self, document: Document) -> Result:
        redacted, places, inside = self.redaction.document(document)
        if not places and not inside:
            return document
        share = sum(place.end - place.start for place in places) / max(len(document.text), 1)
        if share > self.config.most_share:
            return Dropped("mostly personal data", f"{share:.0%} of the text, at most {self.config.most_share:.0%}")
        if self.config.evidence == "none":
            return redacted
        evidence = {"counts": dict(Counter(place.kind for place in places)), "meta": inside}
        if self.config.evidence == "places":
            evidence["places"] = [place.as_list() for place in places]
        return replace(redacted, meta={**redacted.meta, "redactions": evidence})
