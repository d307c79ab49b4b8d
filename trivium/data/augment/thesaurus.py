"""Which words can stand for a word in its place, part of speech and inflection kept."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trivium.artifacts.writer import write_file
from trivium.data.augment.inflection import FORMS, Form, Part, analyses, inflect
from trivium.data.intake import InputFile, Intake
from trivium.errors import DataError

SMALL = Path(__file__).with_name("thesaurus.jsonl")
"""The common words of WordNet 3.0 that have a synonym in their most frequent meaning; made by `write_small`."""


@dataclass(frozen=True)
class Reading:
    """What a word can be: the form of a base as a part of speech. weight: how usual that is."""

    base: str
    part: Part
    form: Form
    weight: float


class Thesaurus(ABC):
    """Words that can stand for each other."""

    @abstractmethod
    def readings(self, word: str) -> Sequence[Reading]:
        """Everything a word (in lower case) can be."""

    @abstractmethod
    def synonyms(self, base: str, part: Part) -> Sequence[str]:
        """Words of the same meaning as a base."""

    @abstractmethod
    def inflected(self, base: str, part: Part, form: Form) -> str | None:
        """A form of a base; None if it is not known."""


class Listed(Thesaurus):
    """A list of words with their synonyms.

    rows:    {"word", "synonyms"}; and `part` (n, v, a or r; default: any), `weights` (how usual the word is as each
             part of speech), `forms` (what is irregular: {"ed": "stopped"}, null for a form that is not known).
    inflect: take the words in their English inflections too; otherwise as they stand in the list.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], *, inflect: bool = True) -> None:
        self._inflect = inflect
        self._synonyms: dict[tuple[str, Part], tuple[str, ...]] = {}
        self._weights: dict[str, dict[Part, float]] = {}
        self._forms: dict[tuple[str, Part, Form], str | None] = {}
        for row in rows:
            word = row["word"].lower()
            part: Part = row.get("part") or "n"
            known = self._synonyms.get((word, part), ())
            self._synonyms[word, part] = tuple(dict.fromkeys([*known, *row["synonyms"]]))
            weights = self._weights.setdefault(word, {})
            weights.update(row.get("weights") or {part: max(1.0, weights.get(part, 0.0))})
            for form, written in (row.get("forms") or {}).items():
                self._forms[word, part, form] = written

    def readings(self, word: str) -> Sequence[Reading]:
        found = []
        for base, form in analyses(word) if self._inflect else [(word, "base")]:
            for part, weight in self._weights.get(base, {}).items():
                if form in FORMS[part] and (form == "base" or self.inflected(base, part, form) == word):
                    found.append(Reading(base, part, form, weight))
        return found

    def synonyms(self, base: str, part: Part) -> Sequence[str]:
        return self._synonyms.get((base, part), ())

    def inflected(self, base: str, part: Part, form: Form) -> str | None:
        return self._forms.get((base, part, form), inflect(base, form))


@cache
def open_thesaurus(name: str, *, senses: int = 1, share: float = 0.5, inflect: bool = True) -> Thesaurus:
    """`small` (in the package), `wordnet` (installed), a folder of WordNet's files, or a list (.jsonl, .csv)."""
    from trivium.data.augment.wordnet import USUAL_FOLDERS, WordNet, missing_wordnet

    if name == "small":
        return Listed([json.loads(line) for line in SMALL.read_text(encoding="utf-8").splitlines()])
    if name == "wordnet":
        folder = next((Path(place) for place in USUAL_FOLDERS if (Path(place) / "index.noun").is_file()), None)
        if folder is None:
            raise missing_wordnet(", ".join(USUAL_FOLDERS))
        return WordNet(folder, senses=senses, share=share)
    path = Path(name).expanduser()
    if path.is_dir():
        return WordNet(path, senses=senses, share=share)
    return Listed(_rows(path), inflect=inflect)


def write_small(wordnet: Any, target: Path, *, least_uses: int = 3) -> int:
    """Write the list in the package from the files of WordNet: words used at least `least_uses` times in its texts.

    Returns the number of words. The licence of WordNet asks for its notice, which lies beside the list.
    """
    found: dict[tuple[str, Part], Sequence[str]] = {}
    parts: tuple[Part, ...] = ("n", "v", "a", "r")
    for part in parts:
        for word in wordnet.words(part):
            synonyms = wordnet.synonyms(word, part) if wordnet.uses(word, part) >= least_uses else ()
            if synonyms:
                found[word, part] = synonyms
    # Words that only stand for others are listed with their irregular forms: nobody `holded` anything.
    others = dict.fromkeys((other, part) for (_, part), synonyms in found.items() for other in synonyms)
    rows = []
    for word, part in {**found, **{key: () for key in others if key not in found}}:
        special = {form: _form(wordnet, word, part, form) for form in FORMS[part] if form != "base"}
        special = {form: written for form, written in special.items() if written != inflect(word, form)}
        if special or (word, part) in found:
            row = {"word": word, "part": part, "synonyms": found.get((word, part), ())}
            rows.append({**row, "weights": _weights(wordnet.readings(word)), **({"forms": special} if special else {})})
    write_file(target, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    return len(found)


def _weights(readings: Sequence[Reading]) -> dict[Part, float]:
    """How often a spelling is each part of speech: `looking` is mostly a form of `look`."""
    found: dict[Part, float] = {}
    for reading in readings:
        found[reading.part] = found.get(reading.part, 0.0) + reading.weight
    return found


def _form(thesaurus: Thesaurus, word: str, part: Part, form: Form) -> str | None:
    """A form of a word; None where it is not known, or mostly a form of another word (`leaves`)."""
    written = thesaurus.inflected(word, part, form)
    if written is None:
        return None
    readings = thesaurus.readings(written)
    own = sum(each.weight for each in readings if (each.base, each.part) == (word, part))
    return written if own >= 0.5 * sum(each.weight for each in readings) else None


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a list of synonyms; in csv several synonyms of a word are divided by `;` or `|`."""
    from trivium.data.sources import csv, jsonl

    reader = csv if path.suffix in (".csv", ".tsv") else jsonl
    if not path.is_file() or path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise DataError(
            "there is no such thesaurus",
            where=path,
            fix="use small, wordnet, a folder of WordNet's files, or a list: .jsonl or .csv with word and synonyms",
        )
    rows = []
    for row in reader.rows(InputFile(path, path.name), Intake()):
        word, synonyms, part = (row.values.get(name) for name in ("word", "synonyms", "part"))
        if isinstance(synonyms, str):
            synonyms = [each.strip() for each in synonyms.replace("|", ";").split(";") if each.strip()]
        wrong = not isinstance(word, str) or not word.strip() or not isinstance(synonyms, list) or not synonyms
        if wrong or not all(isinstance(each, str) for each in synonyms) or part not in (None, "", "n", "v", "a", "r"):
            raise DataError(
                "the row is no word with its synonyms",
                where=row.where,
                value=row.values,
                fix='write {"word": "film", "synonyms": ["movie"]}; part, if any, is n, v, a or r',
            )
        rows.append({**row.values, "word": word.strip(), "synonyms": synonyms})
    return rows
