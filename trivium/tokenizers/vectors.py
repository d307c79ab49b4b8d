"""Word vectors: look them up, find neighbours, read and write them in the format of word2vec.

The file is text: a line `<words> <numbers in a vector>`, then on each line a word and its vector, with single spaces.
gensim's `KeyedVectors.load_word2vec_format` and most other programs read and write it. Files without the first line
(GloVe's) are read too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.manifest import verify
from trivium.artifacts.writer import write_file, write_plain
from trivium.errors import TokenizerError
from trivium.nearest import nearest as similar_spelling

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

Floats = NDArray[np.float32]

VECTORS = "vectors.vec"
FACTS = "training.json"


class WordVectors:
    """Words and their vectors.

    words:  V different words; of trained vectors the most frequent first.
    matrix: [V, D] their vectors, float32.
    facts:  what is known of their training; JSON values.
    contexts: [V, D] right after training, the vectors by which words are predicted; they are not saved.
    """

    def __init__(
        self,
        words: Sequence[str],
        matrix: Floats,
        *,
        facts: Mapping[str, Any] | None = None,
        contexts: Floats | None = None,
    ) -> None:
        self.words = list(words)
        self.matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        self.facts = dict(facts or {})
        self.contexts = contexts
        self.index = {word: number for number, word in enumerate(self.words)}
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.words) or len(self.index) != len(self.words):
            raise TokenizerError(
                "word vectors are one row for each of different words",
                value=f"{len(self.index)} different words of {len(self.words)}, matrix {self.matrix.shape}",
            )

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self.index

    def vector(self, word: str) -> Floats:
        """[D] the vector of a word; TokenizerError if there is none."""
        number = self.index.get(word)
        if number is None:
            raise self._unknown(word)
        row: Floats = self.matrix[number]
        return row

    def similarity(self, first: str, second: str) -> float:
        """Cosine of the angle between two words."""
        self.vector(first), self.vector(second)
        return float(self._directions[self.index[first]] @ self._directions[self.index[second]])

    def nearest(
        self, word: str | None = None, *, count: int = 10, plus: Sequence[str] = (), minus: Sequence[str] = ()
    ) -> list[tuple[str, float]]:
        """The `count` words with the largest cosine to `word`, without the words of the question themselves.

        plus, minus: further words that are added and subtracted as directions: `nearest(plus=["king", "woman"],
        minus=["man"])`.
        """
        asked = [*([word] if word is not None else []), *plus, *minus]
        numbers = [self.index[each] if each in self.index else self._raise(each) for each in asked]
        if not numbers or count < 1:
            raise TokenizerError("name at least one word, and ask for at least one neighbour", value=count)
        signs = np.array([1.0] * (len(asked) - len(minus)) + [-1.0] * len(minus), dtype=np.float32)
        direction = signs @ self._directions[numbers]
        scores = self._directions @ direction / max(float(np.linalg.norm(direction)), 1e-12)
        scores[numbers] = -np.inf
        best = np.argsort(-scores, kind="stable")[: min(count, len(self.words) - len(set(numbers)))]
        return [(self.words[number], float(scores[number])) for number in best.tolist()]

    def save(self, folder: Path) -> None:
        """Write `vectors.vec` and what is known of the training; call it inside a `write_artifact` block."""
        write_plain(folder / VECTORS, self._lines())
        write_file(folder / FACTS, json.dumps(self.facts, indent=1))

    @classmethod
    def load(cls, path: str | Path, *, only: Collection[str] | None = None) -> WordVectors:
        """Read a file in the format of word2vec, or a folder that `save` wrote; one line at a time.

        only: leave out all words but these. The whole file is checked all the same.

        TokenizerError names the line that is wrong; ArtifactDamaged if the folder is not what was written.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            if not (path / VECTORS).is_file():
                raise TokenizerError(
                    f"the folder holds no {VECTORS}", where=path, fix="name a file, or a folder of word vectors"
                )
            verify(path)
            path /= VECTORS
        words, rows = [], []
        for word, row in _read(path, None if only is None else set(only)):
            words.append(word)
            rows.append(row)
        return cls(words, np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32))

    @cached_property
    def _directions(self) -> Floats:
        """[V, D] vectors of length one (of length zero where they have no direction)."""
        lengths = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        return np.asarray(self.matrix / np.maximum(lengths, 1e-12), dtype=np.float32)

    def _lines(self) -> Iterator[bytes]:
        """Nine digits: enough for every float32 to be read back as it was."""
        form = " ".join(["%.9g"] * self.size)
        yield f"{len(self.words)} {self.size}\n".encode()
        for start in range(0, len(self.words), 1000):
            rows = zip(self.words[start : start + 1000], self.matrix[start : start + 1000].tolist(), strict=True)
            yield "".join(f"{word} {form % tuple(row)}\n" for word, row in rows).encode()

    def _unknown(self, word: str) -> TokenizerError:
        near = similar_spelling(word, self.words)
        return TokenizerError(
            "the word has no vector",
            value=word,
            fix=f"did you mean {near}?" if near else "use a word that occurs often enough in the training texts",
        )

    def _raise(self, word: str) -> int:
        raise self._unknown(word)


def token_words(tokenizer: Tokenizer) -> list[str | None]:
    """[vocab_size] the word that each token spells when it stands alone; None for what is no word by itself.

    Marks of word beginnings (`Ġ`, `▁`, spaces) are taken off. No words are special tokens, pieces that go on inside
    a word (`##ing`), pieces of characters, and white space.
    """
    special = set(tokenizer.special_tokens.values())
    wordpiece = tokenizer.files.definition["model"].get("type") == "WordPiece"
    found: list[str | None] = []
    for identifier, value in enumerate(tokenizer.token_bytes):
        inside = wordpiece and tokenizer.token(identifier).startswith("##")
        try:
            word = "" if inside or identifier in special else value.decode().strip()
        except UnicodeDecodeError:
            word = ""
        found.append(word or None)
    return found


def _read(path: Path, only: set[str] | None) -> Iterator[tuple[str, Floats]]:
    """(word, vector) of each line, checked."""
    seen: set[bytes] = set()
    declared: tuple[int, int] | None = None
    width: int | None = None
    number = 0
    for number, line in _numbered(path):
        where = f"{path}:{number}"
        fields = line.split(b" ")
        if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
            declared = int(fields[0]), int(fields[1])
            width = declared[1]
            continue
        width = len(fields) - 1 if width is None else width
        if len(fields) != width + 1 or not width or not fields[0]:
            raise TokenizerError(
                f"the line is not a word and {width or 'some'} numbers" if fields[0] else "the line has no word",
                where=where,
                value=line[:100].decode("utf-8", "backslashreplace"),
                fix="write one word without spaces and its vector on each line, with single spaces",
            )
        if fields[0] in seen:
            raise TokenizerError(
                "the word has a vector already",
                where=where,
                value=fields[0].decode("utf-8", "backslashreplace"),
                fix="remove one of the two lines",
            )
        seen.add(fields[0])
        word, row = _word(fields[0], where), _vector(fields[1:], where)
        if only is None or word in only:
            yield word, row
    if declared is not None and len(seen) != declared[0]:
        raise TokenizerError(
            f"the first line says {declared[0]} words, the file holds {len(seen)}",
            where=f"{path}:1",
            fix="correct the number, or get the whole file again",
        )
    if not seen:
        raise TokenizerError("the file holds no word vectors", where=path, fix="give a file in the format of word2vec")


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end); word2vec's own program ends lines with a space."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.rstrip(b"\r\n").rstrip(b" ")
    except FileNotFoundError:
        raise TokenizerError("there is no such file of word vectors", where=path, fix="check the path") from None
    except OSError as error:
        raise TokenizerError(
            f"the file cannot be read: {error.strerror or error}", where=path, fix="check the path and its permissions"
        ) from error


def _word(field: bytes, where: str) -> str:
    try:
        return field.decode()
    except UnicodeDecodeError:
        raise TokenizerError(
            "the word is not UTF-8",
            where=where,
            value=field[:60].decode("utf-8", "backslashreplace"),
            fix="give the text format, not word2vec's binary one, in UTF-8",
        ) from None


def _vector(fields: list[bytes], where: str) -> Floats:
    try:
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused below
            row = np.array(list(map(float, fields)), dtype=np.float32)
    except ValueError:
        wrong: Callable[[bytes], bool] = _is_no_number
        raise TokenizerError(
            "the line holds something that is no number",
            where=where,
            value=next(filter(wrong, fields)).decode("utf-8", "backslashreplace"),
            fix="correct the line, or get the file again",
        ) from None
    if not np.isfinite(row).all():
        raise TokenizerError(
            "the vector holds an infinity or not-a-number", where=where, fix="correct or remove the line"
        )
    return row


def _is_no_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return True
    return False
