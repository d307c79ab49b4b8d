"""How alike two texts are: by characters, by words, or by what a model makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from trivium.errors import TriviumError

Similarity = Callable[[Sequence[tuple[str, str]]], list[float]]
"""For each pair of texts a number up to 1, which is the same text."""


def similarities(measure: str) -> Similarity:
    """`chrf`, `words`, or the folder of a model whose embeddings are compared."""
    if measure == "chrf":
        return lambda pairs: [chrf(one, other) for one, other in pairs]
    if measure == "words":
        return lambda pairs: [common_words(one, other) for one, other in pairs]
    return _cosine(measure)


def chrf(reference: str, text: str, *, longest: int = 6, beta: float = 2.0) -> float:
    """chrF (Popović 2015) of a text against another: F-score of their runs of one to six characters, without spaces."""
    one, other = "".join(reference.split()), "".join(text.split())
    precisions, recalls = [], []
    for size in range(1, longest + 1):
        wanted, found = (Counter(each[at : at + size] for at in range(len(each) - size + 1)) for each in (one, other))
        if wanted and found:
            common = (wanted & found).total()
            precisions.append(common / found.total())
            recalls.append(common / wanted.total())
    precision, recall = (sum(each) / len(each) if each else 0.0 for each in (precisions, recalls))
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision + recall else 0.0


def common_words(one: str, other: str, *, longest: int = 3) -> float:
    """Share of the runs of one to three words of two texts (in any case) that both have (Jaccard)."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.casefold().split()
        return {tuple(words[at : at + n]) for n in range(1, longest + 1) for at in range(len(words) - n + 1)}

    first, second = runs(one), runs(other)
    return len(first & second) / len(first | second) if first | second else 1.0


def _cosine(folder: str) -> Similarity:
    import trivium

    try:
        model = trivium.load(folder)
    except TriviumError as error:
        raise type(error)(
            f"similarity is measured by chrf, words or a model folder: {error.problem}",
            where=error.where,
            value=folder,
            fix=error.fix,
        ) from None

    def measure(pairs: Sequence[tuple[str, str]]) -> list[float]:
        if not pairs:
            return []
        texts = sorted({text for pair in pairs for text in pair})
        place = {text: number for number, text in enumerate(texts)}
        vectors = model.embed([_shortened(text) for text in texts])
        # Rounded, so that which texts are computed together does not decide about a child.
        return [round(float(vectors[place[one]] @ vectors[place[other]]), 4) for one, other in pairs]

    def _shortened(text: str) -> str:
        """As much of a text as the model reads."""
        room = model.context_length - 8
        ids = model.tokenizer.encode(text)
        return text if len(ids) <= room else model.tokenizer.decode(ids[:room])

    return measure
