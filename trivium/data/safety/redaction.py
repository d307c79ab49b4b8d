"""Finds personal data in a text and puts placeholders in their place."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from trivium.data.documents import Document
from trivium.data.safety.findings import Finding, Recogniser, around_digits, masked, without_overlaps
from trivium.data.safety.money import cards, ibans
from trivium.data.safety.national import DEFAULT, REGISTERS, NationalIds
from trivium.data.safety.network import Addresses, Secrets, emails, macs, url_credentials
from trivium.data.safety.persons import BirthDates, NameList, NameModel, Patterns, Records
from trivium.data.safety.phones import Phones
from trivium.data.safety.placeholders import Placeholders, Style

Kind = Literal[
    "email", "phone", "ip", "mac", "card", "iban", "national_id", "url_credentials", "secret", "birth_date",
    "medical_record",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What is looked for unless told otherwise; names need a list or a model."""

UNCHANGED = frozenset({"group", "parent", "split", "language", "date", "redactions"})
"""Entries of `meta` that name things for the program."""


class Finder:
    """All chosen recognisers, and what is allowed to stay.

    kinds:       of `KINDS`.
    regions:     countries (ISO 3166) whose telephone numbers are known without their country code.
    national_ids: registers, see `trivium.data.safety.national`.
    patterns:    kind -> the user's pattern.
    names, name_model: a file of names, a folder of a model that tags words.
    allow:       values that stay, `*` for any characters; compared in lower case, with the plain form too.
    """

    def __init__(
        self,
        *,
        kinds: Sequence[str] = KINDS,
        regions: Sequence[str] = ("US", "GB"),
        national_ids: Sequence[str] = DEFAULT,
        patterns: Mapping[str, str] | None = None,
        medical_record: str | None = None,
        names: str | Path | None = None,
        name_model: str | Path | None = None,
        name_labels: Sequence[str] = ("PER", "PERSON"),
        allow: Sequence[str] = (),
        private_addresses: bool = False,
        assigned_secrets: bool = True,
        born_after: int = 1900,
    ) -> None:
        by_kind: dict[str, Recogniser] = {
            "secret": Secrets(assigned=assigned_secrets),
            "url_credentials": url_credentials,
            "email": emails,
            "iban": ibans,
            "card": cards,
            "national_id": NationalIds(national_ids),
            "phone": Phones(regions),
            "ip": Addresses(private=private_addresses),
            "mac": macs,
            "birth_date": BirthDates(born_after),
            "medical_record": Records(medical_record),
        }
        everywhere = ("secret", "url_credentials", "email")
        self.recognisers: list[Recogniser] = [by_kind[kind] for kind in everywhere if kind in kinds]
        self.of_digits: list[Recogniser] = [by_kind[kind] for kind in by_kind if kind in {*kinds} - {*everywhere}]
        if patterns:
            self.recognisers.append(Patterns(patterns))
        if names is not None:
            self.recognisers.append(NameList(names))
        self.slow: list[Recogniser] = [] if name_model is None else [NameModel(name_model, name_labels)]
        self.allow = [re.compile(fnmatch.translate(entry.casefold())) for entry in allow]

    def find(self, text: str) -> list[Finding]:
        """What is found, in order, without overlaps."""
        found = [one for recogniser in [*self.recognisers, *self.slow] for one in recogniser(text)]
        found += [
            one for place in around_digits(text) for recogniser in self.of_digits for one in recogniser(text, *place)
        ]
        if self.allow:
            found = [one for one in found if not self._allowed(one, text)]
        return without_overlaps(found, len(text))

    def knows(self, kind: str, value: str) -> bool:
        """Whether an invented value is taken for somebody's, of whatever kind, also where its words stand before it."""
        words = REGISTERS[kind].words[:1] if kind in REGISTERS else ()
        forms = (value, *(f"{word} {value}" for word in words))
        return any(True for form in forms for each in self.recognisers + self.of_digits for _ in each(form))

    def _allowed(self, finding: Finding, text: str) -> bool:
        forms = {finding.value.casefold(), text[finding.start : finding.end].casefold()}
        return any(entry.match(form) for entry in self.allow for form in forms)


@dataclass(frozen=True)
class Replaced:
    """One place of the original text: what it was, what stands there now, and its shape. The value is not kept."""

    kind: str
    start: int
    end: int
    placeholder: str
    shape: str

    def as_list(self) -> list[Any]:
        """JSON values."""
        return [self.kind, self.start, self.end, self.placeholder, self.shape]


@dataclass
class Redaction:
    """How documents are redacted.

    key: the secret of the corpus, None to be consistent inside each document only.
    """

    finder: Finder
    style: Style = "numbered"
    key: bytes | None = None
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def text(self, text: str, document: str = "") -> tuple[str, list[Replaced]]:
        """(text with placeholders, what was replaced)."""
        return self._replace(text, self._placeholders(document))

    def document(self, document: Document) -> tuple[Document, list[Replaced], int]:
        """(the document with placeholders in text and meta, what was replaced in the text, and how much in meta)."""
        placeholders = self._placeholders(document.id)
        text, replaced = self._replace(document.text, placeholders)
        meta, others = self._inside(dict(document.meta), placeholders)
        if not replaced and not others:
            return document, [], 0
        return replace(document, text=text, meta=meta), replaced, others

    def _placeholders(self, document: str) -> Placeholders:
        return Placeholders(self.style, key=self.key, document=document, seed=self.seed, fits=self.finder.knows)

    def _replace(self, text: str, placeholders: Placeholders) -> tuple[str, list[Replaced]]:
        parts, replaced, at = [], [], 0
        for one in self.finder.find(text):
            written = text[one.start : one.end]
            placeholder = placeholders.of(one, written)
            parts += [text[at : one.start], placeholder]
            replaced.append(Replaced(one.kind, one.start, one.end, placeholder, masked(written)))
            at = one.end
        return "".join([*parts, text[at:]]) if replaced else text, replaced

    def _inside(self, value: Any, placeholders: Placeholders) -> tuple[Any, int]:
        """The same JSON value with placeholders in its strings, and how many."""
        if isinstance(value, str):
            changed, replaced = self._replace(value, placeholders)
            return changed, len(replaced)
        if isinstance(value, list | tuple):
            pairs = [self._inside(item, placeholders) for item in value]
            return [item for item, _ in pairs], sum(number for _, number in pairs)
        if isinstance(value, dict):
            found = {
                name: (item, 0) if name in UNCHANGED else self._inside(item, placeholders)
                for name, item in value.items()
            }
            return {name: item for name, (item, _) in found.items()}, sum(number for _, number in found.values())
        return value, 0


EXAMPLES = 5


def redaction_report(documents: Iterable[Document]) -> dict[str, Any]:
    """What the step `redact` did to documents, from the evidence it left in `meta`: counts by kind and shapes."""
    number, counts, shapes, inside = 0, Counter[str](), dict[str, list[str]](), 0
    for document in documents:
        evidence = document.meta.get("redactions")
        if not isinstance(evidence, Mapping):
            continue
        number += 1
        counts.update(evidence.get("counts", {}))
        inside += evidence.get("meta", 0)
        for kind, _, _, _, shape in evidence.get("places", ()):
            known = shapes.setdefault(kind, [])
            if shape not in known and len(known) < EXAMPLES:
                known.append(shape)
    return {"documents": number, "counts": dict(counts.most_common()), "in_meta": inside, "shapes": shapes}
