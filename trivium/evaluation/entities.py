"""Named entities in tagged words: which were found whole, with their kind and both ends right.

Tags are BIO, IOB1, IOBES or BIOES; what counts as one entity is as in the CoNLL evaluation script (and seqeval's
default): an entity ends where its kind changes or a new one begins, whether or not the tags are well-formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trivium.evaluation.intervals import Floats, precision_recall_f1

Entity = tuple[str, int, int]
"""(kind, first word, last word)."""


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order."""
    found: list[Entity] = []
    before, kind_before, start = "O", "", 0
    for at, tag in enumerate([*tags, "O"]):
        mark, kind = _parts(tag)
        if _ends(before, mark, kind_before, kind):
            found.append((kind_before, start, at - 1))
        if _begins(before, mark, kind_before, kind):
            start = at
        before, kind_before = mark, kind
    return found


def is_spans(names: Sequence[str]) -> bool:
    """Whether the names of tags are those of entities (B-PER, I-PER, O) and not of single words (NOUN, VERB)."""
    marked = [name for name in names if name != "O"]
    return bool(marked) and all(name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for name in marked)


def entity_counts(
    truth: Sequence[Sequence[str]], chosen: Sequence[Sequence[str]]
) -> tuple[list[str], Floats, Floats, Floats]:
    """(kinds, right, chosen, true): how many entities of each kind there are in each sentence, [N, K] each."""
    pairs = [(set(entities(one)), set(entities(other))) for one, other in zip(truth, chosen, strict=True)]
    kinds = sorted({entity[0] for both in pairs for side in both for entity in side})
    place = {kind: at for at, kind in enumerate(kinds)}
    counts = np.zeros((3, len(pairs), len(kinds)))
    for row, (there, found) in enumerate(pairs):
        for layer, side in enumerate((there & found, found, there)):
            for entity in side:
                counts[layer, row, place[entity[0]]] += 1
    return kinds, counts[0], counts[1], counts[2]


def entity_figures(
    kinds: Sequence[str], right: Floats, chosen: Floats, true: Floats, weights: Floats
) -> dict[str, Floats]:
    """Micro and macro precision, recall and F1, and those of each kind; weights: [B, N] of the sentences."""
    counts = [weights @ side for side in (right, chosen, true)]
    precision, recall, f1 = precision_recall_f1(*counts)
    micro = precision_recall_f1(*(side.sum(axis=1) for side in counts))
    figures = {"precision": micro[0], "recall": micro[1], "f1": micro[2]}
    figures["macro_f1"] = f1.mean(axis=1) if len(kinds) else np.full(len(weights), np.nan)
    for at, kind in enumerate(kinds):
        figures |= {f"precision/{kind}": precision[:, at], f"recall/{kind}": recall[:, at], f"f1/{kind}": f1[:, at]}
    return figures


def _parts(tag: str) -> tuple[str, str]:
    """(mark, kind) of a tag; L and U are other names of E and S."""
    if tag == "O" or not tag:
        return "O", ""
    mark, _, kind = tag.partition("-")
    return {"L": "E", "U": "S"}.get(mark, mark), kind or "_"


def _ends(before: str, mark: str, kind_before: str, kind: str) -> bool:
    """Whether an entity ends before this tag."""
    if before == "O":
        return False
    return before in ("E", "S") or mark in ("B", "S", "O") or kind != kind_before


def _begins(before: str, mark: str, kind_before: str, kind: str) -> bool:
    """Whether an entity begins with this tag."""
    if mark == "O":
        return False
    return mark in ("B", "S") or before in ("E", "S", "O") or kind != kind_before
