"""The files of WordNet 3.0 (Fellbaum 1998), as Debian's package `wordnet-base` installs them, read where they lie.

Index and data files are sorted, so a word is found by bisection in the mapped file: nothing is loaded, and every worker
shares the same pages. Formats: wndb(5WN), cntlist(5WN).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trivium.data.augment.inflection import Form, Part, analyses, inflect
from trivium.data.augment.thesaurus import Reading, Thesaurus
from trivium.errors import DataError

USUAL_FOLDERS = (
    "/usr/share/wordnet",
    "/usr/local/share/wordnet",
    "/opt/local/share/wordnet",
    "/usr/share/wordnet/dict",
)
"""Where packages put the files."""

_FILES: dict[Part, str] = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_TYPES: dict[bytes, Part] = {b"1": "n", b"2": "v", b"3": "a", b"4": "r", b"5": "a"}
_CACHED = 1 << 15


@dataclass(frozen=True)
class Synset:
    """Words of one meaning, as they are written; those of slang, slurs and other marked usage are left out."""

    offset: int
    words: tuple[str, ...]


class WordNet(Thesaurus):
    """Synonyms of the most frequent meaning of a word.

    senses: how many meanings count, the most frequent first. Two words stand for each other only if the meaning they
    share is among these for both of them: `film` for `movie`, but not `picture`, which mostly means something else.
    share:  least part of the uses of a word that these meanings must have, by WordNet's counts.
    """

    def __init__(self, folder: Path, *, senses: int = 1, share: float = 0.5) -> None:
        self._senses = senses
        self._share = share
        try:
            self._index = {part: _mapped(folder / f"index.{name}") for part, name in _FILES.items()}
            self._data = {part: _mapped(folder / f"data.{name}") for part, name in _FILES.items()}
            self._counts = _mapped(folder / "cntlist.rev")
            self._irregular = {part: _exceptions(folder / f"{name}.exc") for part, name in _FILES.items()}
        except (OSError, ValueError) as error:
            raise missing_wordnet(str(folder), str(error)) from None
        self._forms = {part: _by_base(found) for part, found in self._irregular.items()}
        self.readings = lru_cache(_CACHED)(self.readings)  # type: ignore[method-assign]
        self.synonyms = lru_cache(_CACHED)(self.synonyms)  # type: ignore[method-assign]

    def readings(self, word: str) -> Sequence[Reading]:
        """What a word can be, with how often WordNet's texts have its base as that part of speech."""
        found: dict[tuple[str, Part, Form], float] = {}
        form: Form
        for base, form in analyses(word):
            for part in _FILES:
                fits = form == "base" or (form == "s" and part in "nv") or part == "v"
                irregular = form != "base" and any(_form_of(other) == form for other in self._forms[part].get(base, ()))
                if fits and not irregular and self._offsets(base, part):
                    found[base, part, form] = sum(self._tags(base, part)) + 0.5
        for part, words in self._irregular.items():
            for base in words.get(word, ()):
                form = "s" if part == "n" else _form_of(word)
                known = form in ("s", "ing") or (form == "ed" and part == "v")
                if self._offsets(base, part):
                    # A form that may be two things (`went`, `better`) counts, but is never replaced.
                    found[base, part, form if known else "base"] = sum(self._tags(base, part)) + 0.5
        return [Reading(*key, weight) for key, weight in found.items()]

    def synonyms(self, base: str, part: Part) -> Sequence[str]:
        """Words that mostly mean the same as a word."""
        counts = self._tags(base, part)
        if sum(counts) and sum(counts[: self._senses]) < self._share * sum(counts):
            return ()
        words = []
        for offset in self._offsets(base, part)[: self._senses]:
            for word in self._synset(offset, part).words:
                fits = word != base and word.isascii() and word.isalpha() and word.islower()
                # A word that no text of WordNet's corpus has (luculent, belike) stands for nothing.
                if fits and offset in self._offsets(word, part)[: self._senses] and any(self._tags(word, part)):
                    words.append(word)
        return tuple(dict.fromkeys(words))

    def inflected(self, base: str, part: Part, form: Form) -> str | None:
        """A form of a word; None for a past that may be two words (`went`, `gone`)."""
        if form == "base":
            return base
        others = self._forms[part].get(base, ())
        same = [other for other in others if (part == "n" and form == "s") or _form_of(other) == form]
        if same:
            return same[0]
        if form == "ed" and any(_form_of(other) == "base" for other in others):
            return None
        return inflect(base, form)

    def words(self, part: Part) -> Iterator[str]:
        """All single words of a part of speech in lower case, in order."""
        for line in iter(self._index[part].readline, b""):
            word = line.partition(b" ")[0].decode()
            if word.isascii() and word.isalpha() and word.islower():
                yield word
        self._index[part].seek(0)

    def uses(self, base: str, part: Part) -> int:
        """How often the texts of WordNet's corpus have a word as a part of speech."""
        return sum(self._tags(base, part))

    def _offsets(self, base: str, part: Part) -> tuple[int, ...]:
        line = _line(self._index[part], base.encode() + b" ")
        if line is None:
            return ()
        fields = line.split()
        return tuple(map(int, fields[len(fields) - int(fields[2]) :]))

    def _tags(self, base: str, part: Part) -> list[int]:
        """How often each meaning was found in texts, the most frequent first."""
        found: dict[int, int] = {}
        key = base.encode() + b"%"
        for line in _lines(self._counts, key):
            sense, number, count = line.split()
            if _TYPES.get(sense[len(key) : len(key) + 1]) == part:
                found[int(number)] = int(count)
        return [found.get(number, 0) for number in range(1, max(found, default=0) + 1)]

    def _synset(self, offset: int, part: Part) -> Synset:
        data = self._data[part]
        fields = data[offset : data.find(b"\n", offset)].partition(b" | ")[0].split()
        count = int(fields[3], 16)
        words = [field.decode().partition("(")[0] for field in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]
        marked = set()
        for at in range(0, 4 * int(fields[4 + 2 * count]), 4):
            if pointers[at] == b";u":
                source = int(pointers[at + 3][:2], 16)
                marked |= set(range(count)) if source == 0 else {source - 1}
        return Synset(offset, tuple(word for number, word in enumerate(words) if number not in marked))


def missing_wordnet(where: str, problem: str = "no index and data files") -> DataError:
    """WordNet is not installed."""
    return DataError(
        "the files of WordNet are not here",
        where=where,
        value=problem,
        fix="apt install wordnet-base, name the folder with index.noun (thesaurus: FOLDER), or use thesaurus: small",
    )


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _place(file: mmap.mmap, key: bytes) -> int:
    """Where the first line stands that is not before `key`."""
    low, high = 0, len(file)
    while low < high:
        middle = file.rfind(b"\n", 0, (low + high) // 2) + 1
        if middle < low:
            middle = low
        end = file.find(b"\n", middle)
        end = len(file) if end < 0 else end
        if file[middle : min(end, middle + len(key))] < key:
            low = end + 1
        else:
            high = middle
    return low


def _line(file: mmap.mmap, key: bytes) -> bytes | None:
    return next(iter(_lines(file, key)), None)


def _lines(file: mmap.mmap, key: bytes) -> list[bytes]:
    """All lines that begin with `key`."""
    found = []
    at = _place(file, key)
    while file[at : at + len(key)] == key:
        end = file.find(b"\n", at)
        found.append(file[at:end])
        at = end + 1
    return found


def _exceptions(path: Path) -> dict[str, tuple[str, ...]]:
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: tuple(words[1:]) for words in lines if len(words) > 1}


def _by_base(forms: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for form, bases in forms.items():
        for base in bases:
            found.setdefault(base, []).append(form)
    return found


def _form_of(word: str) -> Form:
    """The form that an irregular word is by its ending; `base` if its ending does not say."""
    forms: tuple[Form, ...] = ("ing", "ed", "s")
    for form in forms:
        if word.endswith(form):
            return form
    return "base"
