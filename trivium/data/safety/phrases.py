"""Words and phrases of lists, found in a text in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trivium.errors import DataError

_WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*")


class Phrases:
    """Phrases with labels. A phrase is one or several words; white space and signs between them do not matter.

    labelled:   label -> its phrases. A phrase may have several labels.
    fold_case:  whether capitals make no difference.
    """

    def __init__(self, labelled: Mapping[str, Iterable[str]], *, fold_case: bool = True) -> None:
        self._fold = fold_case
        self._known: dict[str, dict[tuple[str, ...], set[str]]] = {}
        self._longest: dict[str, int] = {}
        for label, phrases in labelled.items():
            for phrase in phrases:
                words = tuple(self._form(word) for word in _WORD.findall(phrase))
                if words:
                    self._known.setdefault(words[0], {}).setdefault(words, set()).add(label)
                    self._longest[words[0]] = max(self._longest.get(words[0], 0), len(words))

    def find(self, text: str) -> Iterator[tuple[str, str, int, int]]:
        """(label, phrase, start, end) of the longest phrase at each word; none inside another."""
        words = [(self._form(found[0]), found.start(), found.end()) for found in _WORD.finditer(text)]
        free = 0
        for at, (word, start, _) in enumerate(words):
            if at < free or word not in self._known:
                continue
            for length in range(min(self._longest[word], len(words) - at), 0, -1):
                phrase = tuple(form for form, _, _ in words[at : at + length])
                if phrase in self._known[word]:
                    for label in sorted(self._known[word][phrase]):
                        yield label, " ".join(phrase), start, words[at + length - 1][2]
                    free = at + length
                    break

    def _form(self, word: str) -> str:
        return word.replace("\u2019", "'").casefold() if self._fold else word


def read_lists(path: Path, below: str | None = None) -> dict[str, list[str]]:
    """A YAML file with a list of phrases under each label; below: only what stands under this name."""
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError("the lists cannot be read", where=path, value=str(error), fix=_FORM) from error
    if below is not None:
        content = content[below]
    if not isinstance(content, dict) or not content:
        raise DataError("the file holds no lists under names", where=path, fix=_FORM)
    for name, phrases in content.items():
        if not isinstance(phrases, list) or not all(isinstance(one, str | int) for one in phrases):
            raise DataError(
                "the list under this name holds something else than words", where=path, value=name, fix=_FORM
            )
    return {str(name): [str(one) for one in phrases] for name, phrases in content.items()}


_FORM = "write YAML: `name: [word, two words, ...]`, one line for each list"
